"""`python -m forvalue_index` is `forvalue`: a command as a process of its own."""

from __future__ import annotations

import atexit
import gc

from forvalue_index.cli import main

BETWEEN = 50_000  # new objects between two searches for cycles


def run() -> None:
    """Runs the command that the arguments name, and exits.

    Nearly all that a start makes, such as the libraries' modules, stays until the end: searching
    it for cycles, while it is made and as the process ends, would take a third of the start.
    """
    gc.set_threshold(BETWEEN)
    atexit.register(gc.freeze)
    main(prog_name="forvalue")


if __name__ == "__main__":
    run()
