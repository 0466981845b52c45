"""What is asked of an index, beyond a ranked list."""
