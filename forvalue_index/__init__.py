"""Which training data drove this output? A vector index whose inner product is the influence.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if os.name != "posix":
    raise ImportError(
        "forvalue_index runs on POSIX systems (Linux, macOS), for it locks and maps files as these "
        "do, but this one is not: on Windows, use WSL"
    )

if TYPE_CHECKING:
    from forvalue_index.callback import IndexCallback
    from forvalue_index.client import InfluenceClient
    from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
    from forvalue_index.data.sources import open_rows
    from forvalue_index.errors import ForvalueError
    from forvalue_index.index import InfluenceIndex
    from forvalue_index.model.generation import Sampling
    from forvalue_index.model.language_model import wrap_model
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.pipeline.preview import preview
    from forvalue_index.records import Explanation, Hit, Passage

_HOMES = {
    "AddReport": "pipeline.add",
    "Explanation": "records",
    "ForvalueError": "errors",
    "FormatConfig": "config",
    "Hit": "records",
    "IndexCallback": "callback",
    "IndexConfig": "config",
    "InfluenceClient": "client",
    "InfluenceIndex": "index",
    "ModelConfig": "config",
    "Passage": "records",
    "Sampling": "model.generation",
    "VectorConfig": "config",
    "open_rows": "data.sources",
    "preview": "pipeline.preview",
    "wrap_model": "model.language_model",
}

__all__ = [
    "AddReport",
    "Explanation",
    "FormatConfig",
    "ForvalueError",
    "Hit",
    "IndexCallback",
    "IndexConfig",
    "InfluenceClient",
    "InfluenceIndex",
    "ModelConfig",
    "Passage",
    "Sampling",
    "VectorConfig",
    "open_rows",
    "preview",
    "wrap_model",
]


if not TYPE_CHECKING:  # else a type checker takes every name for one of the package's

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
