"""`python -m forvalue_index` is `forvalue`."""

from forvalue_index.cli import main

main(prog_name="forvalue")
