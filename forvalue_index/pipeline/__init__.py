"""What is done with an index: a verb is a file."""
