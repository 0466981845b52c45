"""Shards past one process: built by themselves, on Ray, and dealt out anew."""
