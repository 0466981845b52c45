"""How good an index is, measured against what is known."""
