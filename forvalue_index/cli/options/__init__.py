"""Options, each declared once: a file for each group, and decorators that add them to a command."""
