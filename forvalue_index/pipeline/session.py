"""The model and the vectoriser of an open index: from rows to samples, vectors and exact scores.

The libraries of models are imported with the first model, vectoriser or encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from forvalue_index.config import FormatConfig, IndexConfig, named
from forvalue_index.data.field_guess import format_of_queries
from forvalue_index.data.field_use import uses
from forvalue_index.data.images import with_images
from forvalue_index.data.labels import RowFormatter, row_formatter
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted, query_format
from forvalue_index.errors import (
    CorruptIndexError,
    FingerprintError,
    InputError,
    ModelError,
    brief,
)
from forvalue_index.field_types import require_class
from forvalue_index.metric import Metric
from forvalue_index.records import Encoded, QueryVectors, Sample, require_rows
from forvalue_index.rendering import begin
from forvalue_index.store.manifest import SHARD
from forvalue_index.store.store import Store
from forvalue_index.store.vectoriser import digest

if TYPE_CHECKING:
    from forvalue_index.model.encoder import Encoder
    from forvalue_index.model.language_model import LanguageModel
    from forvalue_index.model.runner import Refused
    from forvalue_index.vectors.vectoriser import Vectoriser

log = logging.getLogger(__name__)

Queries: TypeAlias = "Data | Sample | list[Sample]"
"""Rows in the form of the index's own, or paths of files with such, or samples."""

SETTINGS = "settings"
"""The entry of a fingerprint for the settings that change the model's forward pass."""

LEARNED = {"vectoriser", "dim", "retained", "fidelity", SHARD}
"""What joins a fingerprint when the vectoriser is fitted, or the index is a shard of another."""


class Session:
    """The store of an index with its model and vectoriser, which are loaded when first needed.

    Safe to use from many threads: what one of them loads, the others wait for.
    """

    def __init__(self, store: Store, config: IndexConfig, device: str | None) -> None:
        self.store = store
        self.config = config
        self._device = device
        self._loading = RLock()  # of what follows
        self._lm: LanguageModel | None = None
        self.named: Collection[str] = ()  # models that the user named: others are not fetched
        self._given = False  # whether the model was handed over, and not loaded by its name
        self._encoder: Encoder | None = None
        self._vectoriser: Vectoriser | None = None
        self._formatter: tuple[LanguageModel, FormatConfig, RowFormatter] | None = None  # the last
        self._told = set[str]()  # warnings

    def close(self) -> None:
        """Closes the store and lets go of the model and the vectoriser."""
        self.store.close()
        self.unload()

    def unload(self) -> None:
        """Lets go of the model and the vectoriser."""
        with self._loading:
            self._lm = self._vectoriser = self._encoder = self._formatter = None

    def move(self, device: str) -> None:
        """Moves the model to another device, where it is loaded when it is needed.

        Raises:
            InputError: the model was handed over, so that it is where it is.
        """
        if self._given:
            raise InputError(
                "a model in memory is on one device only: name it by its path or hub id, so "
                "that it can be loaded on others, or leave out the devices"
            )
        if device != self._device:
            self.unload()
            self._device = device

    @property
    def lm(self) -> LanguageModel:
        """The model, loaded and checked against the fingerprint when it is first needed."""
        with self._loading:
            if self._lm is None:
                if self.config.format.is_chat:
                    begin()  # while the libraries of models are imported here
                from forvalue_index.model.language_model import load_model
                from forvalue_index.model.load import on_this_machine

                if not self.config.model.name:
                    raise ModelError(
                        f"{self.store.directory} was made with a model in memory, which has no "
                        "name to load it by: give it again as `model`, or the folder it is saved in"
                    )
                config = on_this_machine(self.config.model, self.named)
                self.use(load_model(config, self._device))
            assert self._lm is not None
            return self._lm

    def load(self) -> None:
        """Loads the model, if it is not there yet.

        Raises:
            FingerprintError: it is not the index's.
        """
        self._lm = self.lm

    def use(self, lm: LanguageModel, *, given: bool = False) -> None:
        """Takes a loaded model after a check that it is the index's; `given`: it is the caller's.

        Raises:
            FingerprintError: it is another one.
        """
        stored, found = self.store.catalog.fingerprint, fingerprint(self.config, lm)
        stored, found = _by_setting(stored, found), _by_setting(found, stored)
        # What is stored but not found was written by a newer version, whose vectors depend on it.
        compared = [*found, *sorted(stored.keys() - found.keys() - LEARNED)]
        differing = [name for name in compared if stored.get(name) != found.get(name)]
        if differing:
            details = "; ".join(
                f"{name}: {stored.get(name)} in the index, {found.get(name)} now"
                for name in differing
            )
            other = "" if differing == ["recipe"] else "give the original with --model, or "
            *most, last = differing
            verb = "differ" if most or last.endswith("weights") else "differs"
            names = f"{', '.join(most)} and {last}" if most else last
            raise FingerprintError(
                f"{self.store.directory} was not made with {lm.name} as it is now: {names} {verb} "
                f"({details}); {other}build a new index"
            )
        self.adopt(lm, given=given)

    def adopt(self, lm: LanguageModel, *, given: bool = False) -> None:
        """Takes a loaded model without a check, such as the one the index was just made with."""
        self._lm, self._given = lm, given

    @property
    def vectoriser(self) -> Vectoriser:
        """What turns the model's tokens into this index's vectors.

        Raises:
            IndexMissingError: the index is empty: it learns from the first rows that are added.
            CorruptIndexError: the file is not what was committed.
        """
        with self._loading:
            if self._vectoriser is None:
                from forvalue_index.vectors.vectoriser import Vectoriser

                data = self.store.vectoriser_bytes()
                try:
                    made = Vectoriser.from_bytes(data, self.config.vector, self.lm.device)
                    if made.dim != self.store.dim:
                        raise ValueError(f"dim {made.dim}, committed {self.store.dim}")
                    width, found = self.lm.head.hidden, made.whitening
                    if found is not None and found.hidden != width:
                        raise ValueError(f"states of {found.hidden} numbers, the model's {width}")
                # Whoever changed it may have named it by its new hash.
                except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
                    raise CorruptIndexError(
                        f"the vectoriser of {self.store.directory} cannot be used ({error}): "
                        "restore the index from a copy, or build again"
                    ) from error
                self._vectoriser = made
            return self._vectoriser

    @vectoriser.setter
    def vectoriser(self, value: Vectoriser) -> None:
        self._vectoriser = value

    def formatter(self, format: FormatConfig | None = None) -> RowFormatter:
        """Returns what turns rows into samples; `format`: if not as the index's rows."""
        format, lm = format or self.config.format, self.lm
        with self._loading:
            known = self._formatter
            if known is None or known[0] is not lm or known[1] != format:
                length = lm.max_length(format.max_length)
                made = row_formatter(
                    lm.tokenizer, format, length, lm.head.vocabulary, lm.classes, lm.vision
                )
                known = self._formatter = lm, format, made
            return known[2]

    def samples(self, data: Queries, format: FormatConfig | None = None) -> list[Sample]:
        """Returns queries as samples: tokenised, with the tokens that are scored.

        What is a sample already stays as it is. Where rows lack the fields of the index, these are
        guessed from their names.

        Raises:
            InputError: there is no query, or a file does not exist.
            RowError: a query lacks a field or holds nothing to score.
        """
        if isinstance(data, Sample):
            return [data]
        if isinstance(data, list) and data and all(isinstance(item, Sample) for item in data):
            return cast("list[Sample]", data)
        if isinstance(data, str) and " " in data and not Path(data).exists():
            raise InputError(
                f"a query is a row or a file of rows, and there is no file {brief(data)}: ask "
                'about {"prompt": ..., "response": ...}; respond() is for the model\'s own answer'
            )
        require_class(format, FormatConfig)
        own = self.config.format
        opened, format = open_rows(cast(Data, data)), format or own
        if uses(format) == uses(own):  # none is named for these rows
            format = format_of_queries(opened, format)
        format = replace(format, key_field=None)  # a query needs no key of its own
        rows = list(parted(with_images(opened, format), format))
        if not rows:
            raise InputError("there are no queries in the data: give rows to ask about")
        format = query_format(rows[0][1], format)
        return self.formatter(format).samples(rows)

    def training_samples(self, ids: Iterable[int]) -> list[Sample]:
        """Returns the training samples with these ids, in their order, as they were encoded."""
        stored = self.store.catalog.samples(ids)
        require_rows(stored.values())
        rows = [(f"sample {sample.key!r}", sample.row) for sample in stored.values()]
        return self.formatter().samples(rows)

    @property
    def encoder(self) -> Encoder:
        """Runs the model; it remembers which batches fit into the memory."""
        with self._loading:
            if self._encoder is None:
                from forvalue_index.model.encoder import Encoder

                self._encoder = Encoder(self.lm)
            return self._encoder

    def encode(
        self,
        samples: list[Sample],
        report: Callable[[int, int], None] | None = None,
        refused: Refused = None,
    ) -> list[Encoded]:
        """Returns the vectors of samples, in order, but for those that are refused.

        `report` gets the samples and tokens done.

        Raises:
            RowError: a sample cannot be read; not raised with `refused`.
        """
        encoded: list[Encoded | None] = [None] * len(samples)
        done = tokens = 0
        for batch in self.encoder.encode(samples, self.vectoriser, refused=refused):
            for position, item in batch:
                encoded[position] = item
                tokens += len(samples[position].input_ids)
            done += len(batch)
            if report is not None:
                report(done, tokens)
        if report is not None and not samples:
            report(0, 0)
        return [item for item in encoded if item is not None]

    def vectors(self, samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the vectors of samples, [n, dim] float32, in the scale that is stored."""
        return self.query_vectors(samples).vectors

    def query_vectors(self, samples: list[Sample]) -> QueryVectors:
        """Returns the vectors of samples, and their states if the index has any."""
        encoded = self.encode(samples)
        states = [item.state for item in encoded if item.state is not None]
        return QueryVectors(
            np.stack([item.vector for item in encoded]), np.stack(states) if states else None
        )

    def tell_once(self, message: str) -> None:
        """Logs a warning, unless it was logged before."""
        if message not in self._told:
            self._told.add(message)
            log.warning("%s: %s", self.store.directory, message)

    def query_weights(
        self, samples: list[Sample], vectors: NDArray[np.float32], metric: Metric
    ) -> NDArray[np.float64]:
        """Returns what the stored scores of queries with these vectors are multiplied by, [q]."""
        n_scored = np.array([sample.n_scored for sample in samples])
        return metric.query_weights(vectors, n_scored, self.vectoriser.scale)

    def influence(self, queries: list[Sample], samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the exact influence of samples on queries [q, n], by running both forward."""
        return self.encoder.influence(queries, samples, self.vectoriser.parts)

    def exact(
        self,
        queries: list[Sample],
        samples: list[Sample],
        metric: Metric,
        check: Callable[[], None] = lambda: None,
    ) -> NDArray[np.float64]:
        """Returns the exact scores of samples under a metric, [queries, samples].

        `check` is called before each batch; what it raises ends the pass.
        """
        from forvalue_index.model.exact_pass import ExactPass

        exact = ExactPass(self.encoder, queries, [self.vectoriser.parts])
        found = exact.scores(samples, check).pairs[0]
        sizes = [
            metric.sizes(
                np.sqrt(np.maximum(squares.astype(np.float64), 0)),
                np.array([sample.n_scored for sample in some]),
            )
            for some, squares in ((queries, exact.query_squares()[0]), (samples, found.squares))
        ]
        return found.influence.astype(np.float64) / sizes[0][:, None] / sizes[1]


def _by_setting(fingerprint: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns a fingerprint in which each setting of the model that both know is an entry.

    Older indexes keep none, and versions of transformers differ in which there are.
    """
    own, others = (
        found if isinstance(found, dict) else {}
        for found in (fingerprint.get(SETTINGS), other.get(SETTINGS))
    )
    rest = {name: value for name, value in fingerprint.items() if name != SETTINGS}
    return rest | {f"config {name}": own[name] for name in own if name in others}


def fingerprint(config: IndexConfig, lm: LanguageModel) -> dict[str, Any]:
    """Returns all that two vectors must share for their inner product to mean anything.

    What the vectoriser learned joins it when the first rows are added.
    """
    from forvalue_index.vectors.recipe import RECIPES

    return lm.fingerprint() | {
        "format": digest(named(config.format)),
        "vector": digest(named(config.vector)),
        "recipe": f"{config.vector.recipe}, form {RECIPES[config.vector.recipe].form}",
    }
