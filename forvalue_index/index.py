"""The index: one method per verb. How each works is in the file of its name in `pipeline/`.

`pipeline/session.py` holds the model and the vectoriser, `store/` what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.catalog.address import name_catalog, parse_url, shown
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.config import (
    FormatConfig,
    IndexConfig,
    ModelConfig,
    VectorConfig,
)
from forvalue_index.data.field_guess import guess_format
from forvalue_index.data.formatter import settled
from forvalue_index.data.images import with_images
from forvalue_index.data.ingest import Rejects, check_rows
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import (
    IndexMissingError,
    InputError,
    LockedError,
)
from forvalue_index.metric import DERIVED, Metric, metric_of
from forvalue_index.model.generation import Sampling
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.pipeline import add, explain, query, respond
from forvalue_index.pipeline.add import AddReport, Progress
from forvalue_index.pipeline.explain import Explanation, Passage
from forvalue_index.pipeline.from_trainer import trained
from forvalue_index.pipeline.session import Reader, fingerprint
from forvalue_index.pipeline.workers import settle_devices
from forvalue_index.records import Hit, Row, Sample, StoredSample, listed
from forvalue_index.search.ann import DerivedInfo
from forvalue_index.search.ann_factory import auto_factory
from forvalue_index.search.flat import FlatSearch
from forvalue_index.store import upkeep
from forvalue_index.store.layout import is_index, require_empty, url_of
from forvalue_index.store.store import Store, migrate
from forvalue_index.store.upkeep import CompactReport
from forvalue_index.system import machine
from forvalue_index.vectors.vectoriser import Vectoriser


class InfluenceIndex:
    """A persistent index of a training set that tells which of its samples drove an output.

    Make one with `create`, come back to it with `open`; use it in a `with` block or close it. A
    query answers from the samples that are there when it begins, whoever wrote them. Threads may
    share an open index: forward passes take turns, searches run side by side, and a second writer
    is refused.
    """

    def __init__(self, store: Store, config: IndexConfig, device: str | None) -> None:
        self.store = store
        self.config = config
        self.reader = Reader(store, config, device)

    # -- making, opening, closing --------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: str | Path,
        model: str | Path | ModelConfig | LanguageModel,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
    ) -> InfluenceIndex:
        """Returns a new, empty index in `directory`.

        Args:
            directory: where the index will be; it must not exist, or be empty.
            model: the fine-tuned model: a path, a hub id, or a model that is loaded already, with
                its tokenizer: `wrap_model(model, tokenizer)`.
            format: how a row becomes tokens; default: fields "prompt" and "response".
            vector: how a sample becomes a vector.
            catalog: URL of a PostgreSQL database for rows and metadata, such as
                postgresql+psycopg://user@host/name; default: SQLite, in `directory`. It is kept in
                `directory`, for its owner's eyes only, and named to this machine: `open` connects
                to no other server (see `forvalue_index.catalog.address`).
            device: "cpu", "cuda" or "cuda:1"; default: CUDA when there is one.

        Raises:
            IndexMissingError: `directory` is not empty.
            ModelError: the model cannot be loaded, or its head is not understood.
        """
        path = Path(directory)
        if catalog is not None:
            name_catalog(catalog)
        require_empty(path)
        model = _known(model)
        if isinstance(model, LanguageModel):
            lm, settings = model, ModelConfig(model.name)
        else:
            settings = replace(  # for whoever opens the index somewhere else
                model,
                name=_resolved(model.name),
                adapters=tuple(map(_resolved, model.adapters)),
            )
            lm = load_model(settings, device)
        format = format or FormatConfig()
        length = lm.max_length(format.max_length)
        format = settled(format, lm.tokenizer, length)
        config = IndexConfig(settings, format, vector or VectorConfig())
        store = Store.create(path, config, fingerprint(config, lm), catalog)
        index = cls(store, config, device)
        index.reader.adopt(lm, given=isinstance(model, LanguageModel))
        return index

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        model: str | Path | ModelConfig | LanguageModel | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> InfluenceIndex:
        """Returns the index in `directory`. Its model is loaded when it is first needed.

        Args:
            directory: an index made with `create`.
            model: where the model is now, if it has moved; how it is read, if its adapters have;
                or the loaded model itself. Only what is named here is fetched from the hub.
            device: as in `create`.
            trust_remote_code: run code that comes with the model; an index never decides that.

        Raises:
            IndexMissingError: there is no index in `directory`.
            SchemaError: the index was written by another version of this package.
            FingerprintError: `model` is loaded, and not the one the index was made with.
        """
        given = None if model is None else _known(model)
        store = Store.open(directory)
        settings = replace(store.config.model, trust_remote_code=trust_remote_code)
        if isinstance(model, str | Path):
            settings = replace(settings, name=str(model))
        elif isinstance(given, ModelConfig):
            settings = given
        index = cls(store, replace(store.config, model=settings), device)
        if isinstance(given, ModelConfig):
            index.reader.named = given.name, *given.adapters
        if isinstance(given, LanguageModel):
            try:
                index.reader.use(given, given=True)
            except BaseException:
                index.close()
                raise
        return index

    @classmethod
    def build(
        cls,
        directory: str | Path,
        data: Data,
        model: str | Path | ModelConfig | LanguageModel,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
        devices: str | Sequence[str | int] | None = None,
        on_error: str = "stop",
        progress: Progress | None = None,
    ) -> tuple[InfluenceIndex, AddReport]:
        """Returns a new index of `data` and what was added: `create`, then `add`.

        The rows are checked before the model is loaded, and a build that fails before anything
        was committed leaves nothing behind. One that was interrupted goes on when it is called
        again with the same settings. Arguments and errors are those of the two; without a
        `format`, the fields are guessed from the names that those of the first row have.
        """
        names = settle_devices(devices) if devices is not None else []
        if names and device is not None:
            raise InputError("give a device or devices, not both")
        device = names[0] if names else device
        path = Path(directory)
        if catalog is not None:
            name_catalog(catalog)
        existed, made = path.exists(), not is_index(path)
        if made:
            require_empty(path)
        rows = open_rows(data)
        format, vector = format or guess_format(rows)[0], vector or VectorConfig()
        rows = parted(with_images(rows, format), format)
        with Rejects(on_error) as rejects:
            if made:
                wanted = check_rows(rows, format, rejects, progress)
                index = cls.create(
                    path, model, format=format, vector=vector, catalog=catalog, device=device
                )
            else:
                _require_catalog(path, catalog)
                index = cls.open(path, model=model, device=device)
            try:
                if not made:
                    index._require_settings(format, vector)
                    wanted = check_rows(rows, format, rejects, progress)
                if names:
                    index.reader.move(names[0])
                if not made:
                    with index.store.lock():  # said before a model takes its time and memory
                        pass
                index.reader.load()  # also where no row is missing: it may be another model
                report = add.add(index.reader, rows, wanted, rejects, progress, devices=names)
                return index, report
            except BaseException:
                if made:
                    with suppress(LockedError):  # another process has begun to fill it
                        index.store.destroy(itself=not existed)
                index.close()
                raise

    @classmethod
    def from_trainer(
        cls,
        trainer: Any,
        directory: str | Path,
        *,
        checkpoints: Sequence[str | Path] = (),
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        on_error: str = "stop",
        progress: Progress | None = None,
    ) -> tuple[InfluenceIndex, AddReport]:
        """Returns a new index of what a trainer was trained on, and what was added: `build`.

        The model is the one in memory, as it is now, and stays as it is. The tokens of a sample,
        and which of them are scored, are what the trainer's own collator makes of its train set;
        what else the train set has of a row is kept with it. Later, `open` looks for the model
        where the trainer saves it (its output_dir).

        Args:
            trainer: a `transformers.Trainer`, or one that is made from it, such as TRL's
                `SFTTrainer`; with its tokenizer (`processing_class`).
            directory: where the index will be.
            checkpoints: folders of adapters that it saved, whose influences are added up; they and
                their base are read instead of the model in memory.
            format: how rows are shown and queries become tokens; default: guessed from the
                fields of the train set.
            vector: as in `build`, as are the others.

        Raises:
            InputError: the trainer has no train set, no tokenizer, or makes no labels.
            ModelError: its model is spread over several processes, or its head is not understood.
        """
        found = trained(trainer, format, checkpoints)
        return cls.build(
            directory,
            found.rows,
            found.model,
            format=found.format,
            vector=vector,
            catalog=catalog,
            on_error=on_error,
            progress=progress,
        )

    def close(self) -> None:
        """Lets go of the catalogue, the segments and the model."""
        self.store.close()
        self.reader.close()

    def __enter__(self) -> InfluenceIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.store)

    # -- adding --------------------------------------------------------------------------------

    def add(
        self,
        data: Data,
        *,
        update: bool = False,
        on_error: str = "stop",
        progress: Progress | None = None,
        devices: str | Sequence[str | int] | None = None,
    ) -> AddReport:
        """Adds the rows that are not there yet, and returns what was done.

        All rows are checked before the first is encoded. A row whose key is there with the same
        content is skipped without a forward pass, so that an interrupted `add`, run again, goes on
        after the last chunk that was committed.

        Args:
            data: a path or paths of files, a row (a dict), rows, a `datasets.Dataset`, or what
                `open_rows` returned.
            update: a row whose key is there with other content takes its place, in one step;
                otherwise it is refused.
            on_error: "stop" at the first row that cannot be used, or "skip" such rows: they are
                written to rejects.jsonl in the index's directory, and counted.
            progress: called as the work goes on.
            devices: encode on several: "0,1" or [0, 1] (GPUs), "all" (of them), or names such as
                "cuda:1" and "cpu". Each but the first gets a process of its own; a script that
                uses this needs `if __name__ == "__main__":` around what it does.

        Raises:
            InputError: a file does not exist; or there are several devices, for a model that is
                in memory already.
            WorkerError: the process of a device died; what was committed stays.
            RowError: a row is not JSON, lacks a field, or holds nothing to score.
            KeyConflictError: a key stands in the input twice, or in the index with other content.
            FingerprintError: the model is not the one that the index was made with.
            ModelError: the model gives NaN or infinity.
            LockedError: another process is writing to the index.
            StorageError: the disk is full; what was committed stays.
        """
        names = settle_devices(devices) if devices is not None else []
        if names:
            self.reader.move(names[0])
        rows = parted(with_images(open_rows(data), self.config.format), self.config.format)
        with Rejects(on_error) as rejects:
            checked = check_rows(rows, self.config.format, rejects, progress)
            return add.add(self.reader, rows, checked, rejects, progress, update, names)

    # -- asking --------------------------------------------------------------------------------

    def query(
        self,
        data: Data | Sample | list[Sample],
        k: int = 10,
        *,
        opponents: bool = False,
        metric: str | Metric = "dot",
        where: str | Iterable[str] = (),
        exact: bool = False,
        candidates: int | None = None,
        flat: bool = False,
        format: FormatConfig | None = None,
    ) -> list[Hit]:
        """Returns the k samples that most raised the likelihood of each query's response.

        Hits are ordered by query, then by rank. When fewer than k samples can be a hit, all are.

        Args:
            data: queries in the form of the index's own rows (a row, rows, or paths of files), or
                samples, such as `respond` and `part` return.
            k: hits per query.
            opponents: return those that most lowered it instead, the most harmful first.
            metric: "dot", the influence; "cosine", free of how large both gradients are;
                "per-token", the influence over the scored tokens of both; or "decorrelated", the
                influence with what many samples share damped (`search/decorrelate.py`).
            where: conditions on the rows' fields, such as "source=math"; all must hold.
            exact: run the best candidates forward again, and rank and score them by the exact form
                of the recipe; "decorrelated" has none.
            candidates: how many are run; default: as many as hold the exact k best with a chance
                of 99 %, as it was measured when the index was fitted (10 k if it was not).
            flat: compare every vector, even when there is a derived index (see `optimize`).
            format: how queries become tokens, if not as the index's rows do.

        Raises:
            InputError: k is not positive, there is no query, a file does not exist, a condition
                cannot be read, or the metric is not known or has no exact form.
            RowError: a query lacks a field or holds nothing to score.
            FingerprintError: the model is not the one that the index was made with.
            CorruptIndexError: a segment is not what was committed.
        """
        if k < 1:
            raise InputError(f"k is {k}, but it is a number of hits: use 1 or more")
        metric = metric_of(metric, exact=exact)
        return query.query(
            self.reader,
            self.samples(data, format),
            k,
            opponents=opponents,
            metric=metric,
            where=where,
            exact=exact,
            candidates=candidates,
            flat=flat,
        )

    def explain(
        self, query: Row | Sample, key: str, *, format: FormatConfig | None = None
    ) -> Explanation:
        """Returns the exact influence of one training sample on a query, token by token.

        Args:
            query: a row, or a sample such as `respond` and `part` return.
            key: of the training sample.
            format: how the query becomes tokens, if not as the index's rows do.

        Raises:
            InputError: there is no such key.
            RowError: the query lacks a field or holds nothing to score.
        """
        return explain.explain(self.reader, self._sample(query, format), key)

    def contributions(
        self, query: Row | Sample, hits: Iterable[Hit], *, format: FormatConfig | None = None
    ) -> list[Passage]:
        """Returns the tokens of hits with what each adds to the exact influence on their query.

        Runs the query and the hits forward once. Arguments and errors are those of `explain`.
        """
        ids = [hit.id for hit in hits]
        return explain.contributions(self.reader, self._sample(query, format), ids)

    def respond(
        self,
        prompt: str | Row,
        sampling: Sampling | None = None,
        *,
        format: FormatConfig | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Sample:
        """Returns what the model answers to a prompt, as a sample to query with.

        Its scored tokens are those that the model made, its row has the text of the answer.

        Args:
            prompt: a text, or a row without an answer.
            sampling: how the answer is made; default: the most likely token, 256 at most.
            format: how the prompt becomes tokens, if not as the index's rows do.
            report: called with each word of the answer as it comes.

        Raises:
            InputError: the prompt is empty or too long, or the model answers with nothing.
        """
        return respond.respond(
            self.reader, prompt, format or self.config.format, sampling or Sampling(), report
        )

    def instead(
        self, query: Row | Sample, text: str, *, format: FormatConfig | None = None
    ) -> Sample:
        """Returns the query why the model answers this and not `text`, to the same prompt.

        Its influence is that on the answer's log-likelihood minus that on the other's, exactly:
        with `exact`, `explain` and all else that takes a query.

        Args:
            query: a row with its answer, or a sample, such as `respond` returns.
            text: what could have been said instead.
            format: how the query becomes tokens, if not as the index's rows do.

        Raises:
            InputError: both say the same, or the query is a classifier's.
        """
        return respond.instead(self.reader, query, text, format or self.config.format)

    def part(
        self,
        query: Row | Sample,
        span: str | None = None,
        *,
        tokens: slice | None = None,
        format: FormatConfig | None = None,
    ) -> Sample:
        """Returns the query with a part of its response scored: only that is asked about.

        Args:
            query: a row, or a sample.
            span: the part's text; where it stands more than once, the first counts. A token that
                it shares belongs to it.
            tokens: which of the scored tokens instead, such as slice(0, 5).
            format: how the query becomes tokens, if not as the index's rows do.

        Raises:
            InputError: that is no part of the response, or not one of the two was given.
        """
        if (span is None) == (tokens is None):
            raise InputError("a part is a span of text or a slice of tokens: give one of them")
        return explain.narrow(self.reader, self._sample(query, format), span, tokens)

    def _sample(self, query: Row | Sample, format: FormatConfig | None) -> Sample:
        """Returns the sample of one query."""
        return query if isinstance(query, Sample) else self.samples(query, format)[0]

    def samples(
        self, data: Data | Sample | list[Sample], format: FormatConfig | None = None
    ) -> list[Sample]:
        """Returns queries as samples: tokenised, with the tokens that are scored.

        What is a sample already stays as it is.
        """
        if isinstance(data, Sample):
            return [data]
        if isinstance(data, list) and data and all(isinstance(item, Sample) for item in data):
            return cast("list[Sample]", data)
        return self.reader.samples(cast(Data, data), format)

    def vectors(self, samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the vectors of samples, [n, dim] float32, in the scale that is stored."""
        return self.reader.vectors(samples)

    def scores(
        self, samples: list[Sample], metric: str | Metric = "dot"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the ids of all training samples [n] and their scores for queries [q, n].

        Under the metric "dot" these are influence. As the stored vectors have it; see `influence`
        for the exact form.
        """
        return query.scores(self.reader, samples, metric_of(metric))

    def influence(self, queries: list[Sample], samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the exact influence of samples on queries [q, n], by running both forward."""
        return self.reader.influence(queries, samples)

    def training_samples(self, ids: Iterable[int]) -> list[Sample]:
        """Returns the training samples with these ids, in their order, as they were encoded."""
        return self.reader.training_samples(ids)

    # -- looking after it ----------------------------------------------------------------------

    def remove(self, keys: str | Iterable[str] = (), *, where: str | Iterable[str] = ()) -> int:
        """Returns how many samples were removed: those under `keys`, or that meet `where`.

        They are in no answer from now on, and on disk until `compact`. A key that is not there is
        passed over, so that a removal can be run again.

        Raises:
            InputError: keys and conditions at once, or a condition that cannot be read.
            LockedError: another process is writing to the index.
        """
        keys, conditions = listed(keys), listed(where)
        if keys and conditions:
            raise InputError("keys and conditions were given: remove by one or the other")
        with self.store.lock():
            if conditions:
                return self.store.remove_where(conditions)
            return self.store.remove(keys)

    def compact(self, progress: Progress | None = None) -> CompactReport:
        """Leaves nothing on disk of what was removed, merges small segments; says what it did.

        Queries go on meanwhile. Killed at any point, the index is sound, and the next call ends
        the work.

        Raises:
            LockedError: another process is writing to the index.
            CorruptIndexError: a segment is not what was committed.
            StorageError: the disk is full; what was there stays.
        """
        return upkeep.compact(self.store, progress)

    def rows(
        self, where: str | Iterable[str] = (), *, after: int = -1, limit: int | None = None
    ) -> Iterator[StoredSample]:
        """Yields the samples that meet all conditions, in the order of their ids.

        `after` passes over ids up to this one, and `limit` ends the page.
        """
        return self.store.listing(where, after, limit)

    def get(self, key: str) -> StoredSample:
        """Returns the sample under a key.

        Raises:
            InputError: there is none.
        """
        return self.store.find(key)

    def export(
        self, vectors: str | Path, rows: str | Path, *, where: str | Iterable[str] = ()
    ) -> tuple[int, int]:
        """Writes vectors (.npy, float32 [n, dim]) and their rows (JSON Lines), in the same order.

        The inner product of two of these vectors is the influence of the samples on each other.
        Returns n and dim.

        Raises:
            StorageError: a file cannot be written.
        """
        conditions, scale = listed(where), 1.0
        if self.store.fitted:
            scale = Vectoriser.from_bytes(
                self.store.vectoriser_bytes(), self.config.vector, torch.device("cpu")
            ).scale
        return self.store.answer(
            lambda view: self.store.export(view, Path(vectors), Path(rows), conditions, scale)
        )

    def optimize(
        self,
        factory: str | None = None,
        *,
        metric: str | Metric = "dot",
        memory: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> tuple[DerivedInfo | None, str]:
        """Returns a derived index that queries of a metric use from now on, and why that one.

        It is None where comparing every vector is as well. `add`, `remove` and `compact` keep it
        current; deleting it loses nothing.

        Args:
            factory: a FAISS factory string, such as "IVF1024,SQ8"; default: what suits the number
                of samples, their vectors and the memory.
            metric: as in `query`; the index for "dot" also serves "decorrelated".
            memory: bytes that it may take; default: half of what this process may take, which a
                container may limit.
            progress: called with a stage, steps done and steps in all.

        Raises:
            InputError: FAISS does not know the factory, there are too few samples for it, or the
                metric has no derived index of its own.
            LockedError: another process is writing to the index.
        """
        metric = metric_of(metric)
        if metric.name not in DERIVED:
            raise InputError(
                f"metric {metric.name!r} has no derived index of its own: make that for "
                f"{metric.derived}, which also serves {metric.name}"
            )
        reason = "as requested"
        if factory is None:
            memory = memory or machine.memory() // 2
            factory, reason = auto_factory(len(self), self.dim, memory)
            if factory == "Flat":
                return None, reason
        return upkeep.optimize(self.store, factory, metric, progress), reason

    def info(self) -> dict[str, Any]:
        """Returns what the index holds and what it was made with, as JSON values."""
        return self.store.info() | {
            "model": self.config.model.name,
            "adapters": list(self.config.model.adapters),
            "config": self.config.to_json(),
        }

    def verify(self) -> list[str]:
        """Returns what is wrong with the index, a line each; nothing if all is well.

        All of it is read: every segment, every row, and which files count for nothing.
        """
        return upkeep.verify(self.store)

    def repair(self) -> list[str]:
        """Returns what was done, a line each: stray files removed, what is derived made again.

        Nothing that counts is touched; `verify` says what is still wrong.
        """
        return upkeep.repair(self.store)

    @staticmethod
    def migrate(directory: str | Path) -> tuple[str | None, str]:
        """Returns the schema revisions before and after bringing an index to this version's.

        Raises:
            SchemaError: it was written by a newer version of this package.
        """
        return migrate(directory)

    # -- the parts -----------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """Where the index is."""
        return self.store.directory

    @property
    def _catalog(self) -> Catalog:
        return self.store.catalog

    @property
    def flat(self) -> FlatSearch:
        """The search over the stored vectors."""
        return self.store.flat

    def _require_settings(self, format: FormatConfig, vector: VectorConfig) -> None:
        """Makes sure that a build that goes on was begun with the same settings."""
        for name in ("max_length", "chat_template"):  # settled at creation
            if getattr(format, name) is None:
                format = replace(format, **{name: getattr(self.config.format, name)})
        wanted, found = asdict(format) | asdict(vector), asdict(self.config.format)
        found |= asdict(self.config.vector)
        differing = [f"{name}: {found[name]}" for name in wanted if wanted[name] != found[name]]
        if differing:
            raise IndexMissingError(
                f"{self.directory} holds an index made with other settings "
                f"({', '.join(differing)}): choose a new directory"
            )

    @property
    def lm(self) -> LanguageModel:
        """The model, loaded and checked against the fingerprint when it is first needed."""
        return self.reader.lm

    @property
    def vectoriser(self) -> Vectoriser:
        """What turns the model's tokens into this index's vectors.

        Raises:
            IndexMissingError: the index is empty: it learns from the first rows that are added.
            CorruptIndexError: the file is not what was committed.
        """
        return self.reader.vectoriser

    @property
    def dim(self) -> int:
        """Length of a stored vector; 0 as long as the index is empty."""
        return self.store.dim


def _require_catalog(directory: Path, catalog: str | None) -> None:
    """Makes sure that a build that goes on was begun with the same catalogue, if one is named."""
    found = shown(parse_url(url_of(directory)))
    if catalog is not None and (place := shown(parse_url(catalog))) != found:
        raise IndexMissingError(
            f"{directory} keeps its rows in {found}, not in {place}: choose a new directory"
        )


def _known(model: Any) -> ModelConfig | LanguageModel:
    """Returns a model as it is handed over, a path or hub id as settings.

    Raises:
        InputError: it is something else.
    """
    if isinstance(model, str | Path):
        return ModelConfig(str(model))
    if not isinstance(model, ModelConfig | LanguageModel):
        raise InputError(
            f"a model is a path, a hub id, a ModelConfig, or what wrap_model(model, tokenizer) "
            f"returns, not {type(model).__name__}"
        )
    return model


def _resolved(name: str) -> str:
    """Returns the whole path of what is here; an id on the hub stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name
