"""Files and rows, and how they become samples."""
