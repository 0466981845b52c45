"""What is asked of an index beyond a ranked list. It uses the index and its snapshot only."""
