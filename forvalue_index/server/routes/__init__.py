"""The paths of the API, a file for each kind: what is read, asked, done for long, and changed."""
