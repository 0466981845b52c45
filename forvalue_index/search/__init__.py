"""Vectors on disk and the search among them, with FAISS."""
