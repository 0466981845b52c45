"""What is in an index: a database of its making, its segments and its samples."""
