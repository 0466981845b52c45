"""The index: rows in, influences out. The only file that joins the parts.

    add   : rows -> checked -> those not there yet -> samples -> vectors -> segment -> catalogue
    query : rows -> samples -> vectors -> search -> rows by id -> hits

A segment file is complete on disk before the one transaction that makes it and its rows count.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.lock import WriteLock
from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.data.formatting import Formatter, content_hash, key_of, query_format, texts_of
from forvalue_index.data.readers import JsonLines, MemoryRows, Rows
from forvalue_index.errors import (
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    RowError,
)
from forvalue_index.features.vectoriser import Vectoriser
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.model import LanguageModel, load_model
from forvalue_index.records import Encoded, Hit, Row, Sample, StoredSample
from forvalue_index.search.flat import FlatSearch
from forvalue_index.search.segments import verify_segment, write_segment

CHUNK = 1024
"""Samples that are encoded, written and committed together: the step at which a build resumes."""

Data = str | Path | Iterable[str | Path] | Iterable[Row]
"""Paths of JSON Lines files, or rows."""

Progress = Callable[[str, int, int, int], None]
"""Called with the stage ("reading", "encoding"), rows done, rows in all, tokens done."""


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did."""

    added: int
    skipped: int  # already there, with the same content
    truncated: int  # added, but cut to the maximum length
    tokens: int  # of the added samples
    samples: int  # in the index now


def _silent(stage: str, done: int, total: int, tokens: int) -> None:
    """The progress of a program that does not look."""


class InfluenceIndex:
    """A persistent index of a training set that answers which of its samples drove an output.

    Open it with `create`, `build` or `open`; close it, or use it in a `with` block. It sees the
    samples that were there when it was opened and those it added itself.
    """

    def __init__(self, directory: Path, catalog: Catalog, model: LanguageModel | None) -> None:
        self.directory = directory
        self._catalog = catalog
        self.config = IndexConfig.from_json(catalog.config)
        self._device: str | None = None
        self._lm: LanguageModel | None = None
        self._vectoriser_: Vectoriser | None = None
        self._search_: FlatSearch | None = None
        if model is not None:
            self._use(model)

    @classmethod
    def create(
        cls,
        directory: str | Path,
        model: str | LanguageModel,
        *,
        config: IndexConfig | None = None,
        device: str | None = None,
    ) -> InfluenceIndex:
        """Returns a new, empty index in `directory`.

        Args:
            directory: where the index will be; it must not exist, or be empty.
            model: path or hub id of the model that was (or will be) fine-tuned, or a loaded one.
            config: how rows are read and vectors made; its model is overridden by `model`.
            device: "cpu", "cuda" or "cuda:N"; default: CUDA if there is any.

        Raises:
            IndexMissingError: something is in `directory` already.
            ModelError: the model cannot be loaded or its head is not understood.
        """
        path = Path(directory)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise IndexMissingError(f"{path} is not empty: choose another directory for the index")
        if isinstance(model, str):
            config = config or IndexConfig(ModelConfig(model))
            lm = load_model(replace(config.model, name=model), device)
        else:
            lm = model
            config = config or IndexConfig(ModelConfig(lm.model.name_or_path))
        ...
