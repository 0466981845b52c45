"""The commands by name, each imported when it is first looked up, so that `--help` imports none."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module

import click

SUMMARIES = {
    "preview": "Show rows as the model will see them.",
    "build": "Build an index of training rows.",
    "add": "Add rows to an index.",
    "learn": "Make an index of shards that are built by themselves.",
    "attach": "Join shards that were built by themselves.",
    "query": "Show the training samples that drove a response.",
    "search": "Show the training samples that have these words.",
    "ask": "Ask the model, and see what its answer comes from.",
    "shell": "Ask the model again and again, loaded once.",
    "explain": "Show through which tokens a training sample acted.",
    "serve": "Serve an index over HTTP, with a page to look at it.",
    "score": "Show what every training sample is worth.",
    "audit": "Find rows that are likely wrong or repeated.",
    "select": "Choose the training rows to keep.",
    "evaluate": "Measure how good an index's answers are.",
    "info": "Show what an index holds and what it was made with.",
    "list": "List the samples of an index.",
    "show": "Show one sample with all that is stored about it.",
    "export": "Write vectors and rows to files.",
    "push": "Put an index on the Hugging Face hub.",
    "pull": "Fetch an index from the Hugging Face hub.",
    "remove": "Remove samples from an index.",
    "compact": "Delete removed samples from the disk.",
    "optimize": "Make a derived index for faster queries.",
    "verify": "Read the whole index and report what is wrong.",
    "migrate": "Upgrade an index of an older version.",
    "reshard": "Deal out a sharded index to more or fewer shards.",
    "demo": "Index a shipped data set and ask it questions.",
}
"""A line for each command; its module, `forvalue_index.cli.NAME`, has the whole help."""


class Commands(MutableMapping[str, click.Command]):
    """The commands of `SUMMARIES`."""

    def __init__(self) -> None:
        self._known: dict[str, click.Command | None] = dict.fromkeys(SUMMARIES)

    def __getitem__(self, name: str) -> click.Command:
        command = self._known[name]
        if command is None:
            found = vars(import_module(f"forvalue_index.cli.{name}")).values()
            command = next(c for c in found if isinstance(c, click.Command) and c.name == name)
            self._known[name] = command
        return command

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._known[name] = command

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
