"""What an index is on disk: a noun is a file."""
