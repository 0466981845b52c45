"""The verbs of an index, a file each, from rows over the model to vectors and back to hits.

A verb is imported when it is first used, as `pipeline.add` is in `pipeline.add.add(...)`: most need
the model's libraries, which take seconds to import, and an index is opened without them.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forvalue_index.pipeline import add as add
    from forvalue_index.pipeline import build as build
    from forvalue_index.pipeline import explain as explain
    from forvalue_index.pipeline import from_trainer as from_trainer
    from forvalue_index.pipeline import hybrid as hybrid
    from forvalue_index.pipeline import open as open
    from forvalue_index.pipeline import query as query
    from forvalue_index.pipeline import respond as respond
    from forvalue_index.pipeline import shard as shard

_VERBS = "add", "build", "explain", "from_trainer", "hybrid", "open", "query", "respond", "shard"


def __getattr__(name: str) -> ModuleType:
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
