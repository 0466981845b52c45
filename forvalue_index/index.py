"""The index: rows in, influences out. Joins model, data and vectoriser with the store.

    add   : rows -> checked -> those not there yet -> samples -> vectors -> store, chunk by chunk
    query : rows -> samples -> vectors -> search -> rows by id -> hits

Encoding never happens inside a transaction; how a chunk becomes part of the index is `store.py`'s.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index import upkeep
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.config import RANKS, FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.data.checking import CheckedRows, check_rows, chunks_of
from forvalue_index.data.formatting import Formatter
from forvalue_index.data.readers import Data, Rows, open_rows
from forvalue_index.directory import is_index, require_empty
from forvalue_index.errors import (
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
)
from forvalue_index.features.vectoriser import Vectoriser
from forvalue_index.forward.encoder import Encoder
from forvalue_index.forward.fit import fit_vectoriser
from forvalue_index.forward.model import LanguageModel, load_model
from forvalue_index.records import Encoded, Hit, Sample, StoredSample
from forvalue_index.search.derived import DerivedInfo
from forvalue_index.search.factory import auto_factory
from forvalue_index.search.flat import FlatSearch
from forvalue_index.store import Store, digest, migrate
from forvalue_index.upkeep import CompactReport

CHUNK = 1024
"""Samples that are encoded, written and committed together: the steps at which a build resumes."""

RERANKED = 32
"""Queries whose candidates are run forward together for the exact form."""

Progress = Callable[[str, int, int, int], None]
"""Called with a stage ("reading" or "encoding"), rows done, rows in all (0: unknown), tokens."""


@dataclass(frozen=True, slots=True)
class AddReport:
    """What an `add` did."""

    added: int  # updated ones included
    updated: int  # there under the same key, with other content that is gone now
    skipped: int  # there already, with the same content
    repeated: int  # the same as another row of the input, in every field
    truncated: int  # added, but cut to the maximum length
    tokens: int  # of the added samples
    samples: int  # in the index now
    retained: float  # share of energy that the added samples' vectors hold (1 if none was added)
    expected: float  # the same share of rows that are like those the projection was learned from


class InfluenceIndex:
    """A persistent index of a training set that tells which of its samples drove an output.

    Make one with `create`, come back to it with `open`; use it in a `with` block or close it. A
    query answers from the samples that are there when it begins, whoever wrote them.
    """

    def __init__(self, store: Store, config: IndexConfig, device: str | None) -> None:
        self.store = store
        self.config = config
        self._device = device
        self._lm: LanguageModel | None = None
        self._vectoriser: Vectoriser | None = None

    # -- making, opening, closing --------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: str | Path,
        model: str | ModelConfig | LanguageModel,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
    ) -> InfluenceIndex:
        """Returns a new, empty index in `directory`.

        Args:
            directory: where the index will be; it must not exist, or be empty.
            model: the fine-tuned model: a path, a hub id, or a model that is loaded already.
            format: how a row becomes tokens; default: fields "prompt" and "response".
            vector: how a sample becomes a vector.
            catalog: URL of a PostgreSQL database for rows and metadata, such as
                postgresql+psycopg://user@host/name; default: SQLite, in `directory`. It is kept in
                `directory`, for its owner's eyes only.
            device: "cpu", "cuda" or "cuda:1"; default: CUDA when there is one.

        Raises:
            IndexMissingError: `directory` is not empty.
            ModelError: the model cannot be loaded, or its head is not understood.
        """
        path = Path(directory)
        require_empty(path)
        if isinstance(model, LanguageModel):
            lm, settings = model, ModelConfig(model.name)
        else:
            settings = ModelConfig(model) if isinstance(model, str) else model
            if Path(settings.name).exists():  # for whoever opens the index somewhere else
                settings = replace(settings, name=str(Path(settings.name).resolve()))
            lm = load_model(settings, device)
        format = format or FormatConfig()
        format = replace(format, max_length=lm.max_length(format.max_length))
        config = IndexConfig(settings, format, vector or VectorConfig())
        store = Store.create(path, config, _fingerprint(config, lm), catalog)
        index = cls(store, config, device)
        index._lm = lm
        return index

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        model: str | LanguageModel | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> InfluenceIndex:
        """Returns the index in `directory`. Its model is loaded when it is first needed.

        Args:
            directory: an index made with `create`.
            model: where the model is now, if it has moved, or the loaded model itself.
            device: as in `create`.
            trust_remote_code: run code that comes with the model; an index never decides that.

        Raises:
            IndexMissingError: there is no index in `directory`.
            SchemaError: the index was written by another version of this package.
            FingerprintError: `model` is loaded, and not the one the index was made with.
        """
        store = Store.open(directory)
        settings = replace(store.config.model, trust_remote_code=trust_remote_code)
        if isinstance(model, str):
            settings = replace(settings, name=model)
        config = replace(store.config, model=settings)
        index = cls(store, config, device)
        if isinstance(model, LanguageModel):
            index._use(model)
        return index

    @classmethod
    def build(
        cls,
        directory: str | Path,
        data: Data,
        model: str | ModelConfig | LanguageModel,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[InfluenceIndex, AddReport]:
        """Returns a new index of `data` and what was added: `create`, then `add`.

        The rows are checked before the model is loaded, and a build that fails before anything
        was committed leaves nothing behind. One that was interrupted goes on when it is called
        again with the same settings. Arguments and errors are those of the two.
        """
        path = Path(directory)
        format, vector = format or FormatConfig(), vector or VectorConfig()
        existed, made = path.exists(), not is_index(path)
        rows = open_rows(data)
        if made:
            require_empty(path)
            wanted = check_rows(rows, format, progress)
            index = cls.create(
                path, model, format=format, vector=vector, catalog=catalog, device=device
            )
        else:
            place = model if isinstance(model, str | LanguageModel) else model.name
            trusted = isinstance(model, ModelConfig) and model.trust_remote_code
            index = cls.open(path, model=place, device=device, trust_remote_code=trusted)
            index._require_settings(format, vector)
            wanted = check_rows(rows, format, progress)
        try:
            return index, index._add(rows, wanted, progress)
        except BaseException:
            if made:
                with suppress(LockedError):  # another process has begun to fill it
                    index.store.destroy(itself=not existed)
            index.close()
            raise

    def close(self) -> None:
        """Lets go of the catalogue, the segments and the model."""
        self.store.close()
        self._lm = self._vectoriser = None

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
        self, data: Data, *, update: bool = False, progress: Progress | None = None
    ) -> AddReport:
        """Adds the rows that are not there yet, and returns what was done.

        All rows are checked before the first is encoded. A row whose key is there with the same
        content is skipped without a forward pass, so that an interrupted `add`, run again, goes on
        after the last chunk that was committed.

        Args:
            data: a path or paths of JSON Lines files, a row (a dict), or rows.
            update: a row whose key is there with other content takes its place, in one step;
                otherwise it is refused.
            progress: called as the work goes on.

        Raises:
            InputError: a file does not exist.
            RowError: a row is not JSON, lacks a field, or holds nothing to score.
            KeyConflictError: a key stands in the input twice, or in the index with other content.
            FingerprintError: the model is not the one that the index was made with.
            ModelError: the model gives NaN or infinity.
            LockedError: another process is writing to the index.
            StorageError: the disk is full; what was committed stays.
        """
        rows = open_rows(data)
        return self._add(rows, check_rows(rows, self.config.format, progress), progress, update)

    def _add(
        self, rows: Rows, checked: CheckedRows, progress: Progress | None, update: bool = False
    ) -> AddReport:
        wanted = checked.contents
        with self.store.lock():
            known = self.store.catalog.known(list(wanted))
            changed = [key for key in wanted if known.get(key, wanted[key]) != wanted[key]]
            if changed and not update:
                raise KeyConflictError(
                    f"key {changed[0]!r} is in the index already, with other content: give "
                    "--update to replace it, or change the key"
                )
            old = self.store.catalog.ids_of(changed)
            missing = {key for key in wanted if key not in known} | set(changed)
            ready = self._fit(rows, wanted, missing, progress) if missing else {}
            total, added, truncated, tokens, retained = len(missing), 0, 0, 0, 0.0
            for chunk in chunks_of(rows, missing, self.config.format, CHUNK):
                samples = self._formatter().samples(chunk)

                def report(
                    done: int, done_tokens: int, added: int = added, tokens: int = tokens
                ) -> None:
                    if progress is not None:
                        progress("encoding", added + done, total, tokens + done_tokens)

                encoded = self._encode(samples, report, ready)
                self.store.commit(
                    samples, encoded, [old[sample.key] for sample in samples if sample.key in old]
                )
                retained += sum(item.retained for item in encoded)
                added += len(samples)
                truncated += sum(sample.truncated for sample in samples)
                tokens += sum(len(sample.input_ids) for sample in samples)
            if added:
                self.store.refresh()
                upkeep.extend(self.store)
            if added != total:
                raise InputError(
                    f"{total - added} rows were gone when they were read a second time: "
                    "the input changed; run the command again"
                )
        return AddReport(
            added=added,
            updated=len(changed),
            skipped=len(known) - len(changed),
            repeated=checked.repeated,
            truncated=truncated,
            tokens=tokens,
            samples=len(self),
            retained=retained / added if added else 1.0,
            expected=float(self.store.fingerprint["retained"]),
        )

    def _fit(
        self,
        rows: Rows,
        wanted: dict[str, str],
        missing: set[str],
        progress: Progress | None,
    ) -> dict[str, Encoded]:
        """Fits the vectoriser if it was not yet; returns key -> vector of the fitting samples.

        The fitting samples are those with the smallest content hashes: a random part of the data
        that does not depend on their order.
        """
        if self.store.fitted:
            return {}
        chosen = set(
            heapq.nsmallest(self.config.vector.fit_samples, missing, key=wanted.__getitem__)
        )
        (part,) = chunks_of(rows, set(chosen), self.config.format, len(chosen))
        samples = sorted(self._formatter().samples(part), key=lambda sample: sample.content_hash)

        def report(done: int) -> None:
            if progress is not None:
                progress("fitting", done, len(samples), 0)

        vectoriser, encoded = fit_vectoriser(self.lm, samples, self.config.vector, report)
        retained = vectoriser.projection.expected if vectoriser.projection else 1.0
        self.store.set_vectoriser(
            vectoriser.to_bytes(), {"dim": vectoriser.dim, "retained": round(retained, 4)}
        )
        self._vectoriser = vectoriser
        return {sample.key: item for sample, item in zip(samples, encoded, strict=True)}

    # -- asking --------------------------------------------------------------------------------

    def query(
        self,
        data: Data,
        k: int = 10,
        *,
        opponents: bool = False,
        rank: str = "dot",
        where: Iterable[str] = (),
        exact: bool = False,
        candidates: int | None = None,
        flat: bool = False,
        format: FormatConfig | None = None,
    ) -> list[Hit]:
        """Returns the k samples that most raised the likelihood of each query's response.

        Hits are ordered by query, then by rank. When fewer than k samples can be a hit, all are.

        Args:
            data: queries in the form of the index's own rows (a row, rows, or paths of files).
            k: hits per query.
            opponents: return those that most lowered it instead, the most harmful first.
            rank: "dot", the influence; "cosine", free of how large both gradients are; or
                "per-token", the influence over the scored tokens of both.
            where: conditions on the rows' fields, such as "source=math"; all must hold.
            exact: run the best candidates forward again, and rank and score them by the exact form
                of the recipe.
            candidates: how many are run; default: 10 k.
            flat: compare every vector, even when there is a derived index (see `optimize`).
            format: how queries become tokens, if not as the index's rows do.

        Raises:
            InputError: k is not positive, there is no query, a file does not exist, or a condition
                cannot be read.
            RowError: a query lacks a field or holds nothing to score.
            FingerprintError: the model is not the one that the index was made with.
            CorruptIndexError: a segment is not what was committed.
        """
        if k < 1:
            raise InputError(f"k is {k}, but it counts hits: use 1 or more")
        if rank not in RANKS:
            raise InputError(f"rank {rank!r} is not one of {', '.join(RANKS)}")
        samples = self.samples(data, format)
        conditions, vectors = list(where), self.vectors(samples)

        def ask() -> list[Hit]:
            allowed = self.store.catalog.where(conditions) if conditions else None
            n = max(k, candidates or 10 * k) if exact else k
            stored, ids = self.store.search(
                vectors, n, rank, opponents=opponents, allowed=allowed, flat=flat
            )
            if exact:
                scores, ids = self._rerank(samples, ids, k, rank, opponents)
            else:
                scores = stored * self._query_weights(samples, vectors, rank)[:, None]
            rows = self.store.catalog.samples(ids.ravel().tolist())
            return [
                Hit(query, place, id, rows[id].key, score, rows[id].row, exact)
                for query in range(len(samples))
                for place, (id, score) in enumerate(
                    zip(ids[query].tolist(), scores[query].tolist(), strict=True), 1
                )
            ]

        return self.store.answer(ask)

    def _query_weights(
        self, samples: list[Sample], vectors: NDArray[np.float32], rank: str
    ) -> NDArray[np.float64]:
        """Returns what the scores of each query are multiplied by, [n]."""
        if rank == "cosine":
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        else:
            tokens = [sample.n_scored if rank == "per-token" else 1 for sample in samples]
            lengths = np.array(tokens) * self.vectoriser.scale**2
        weights: NDArray[np.float64] = 1 / np.maximum(lengths, 1e-30)
        return weights

    def _rerank(
        self,
        samples: list[Sample],
        ids: NDArray[np.int64],
        k: int,
        rank: str,
        opponents: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the k best of each query's candidates by the exact form, scores and ids."""
        k = min(k, ids.shape[1])
        scores = np.empty((len(samples), k))
        best = np.empty((len(samples), k), dtype=np.int64)
        for start in range(0, len(samples), RERANKED):
            part = slice(start, start + RERANKED)
            pool = np.unique(ids[part])
            exact = self._exact(samples[part], self.training_samples(pool.tolist()), rank)
            for query, row in enumerate(exact, start):
                own = row[np.searchsorted(pool, ids[query])]
                order = np.lexsort((ids[query], own if opponents else -own))[:k]
                scores[query], best[query] = own[order], ids[query][order]
        return scores, best

    def _exact(
        self, queries: list[Sample], samples: list[Sample], rank: str
    ) -> NDArray[np.float64]:
        """Returns the exact scores of samples under a rank, [queries, samples]."""
        scores = self.influence(queries, samples).astype(np.float64)
        if rank == "dot":
            return scores
        lengths = []
        for side in (queries, samples):
            if rank == "cosine":
                squares = Encoder(self.lm).self_influence(side, self.vectoriser.recipe)
                lengths.append(np.sqrt(np.maximum(squares.astype(np.float64), 1e-60)))
            else:
                lengths.append(np.array([sample.n_scored for sample in side], dtype=np.float64))
        return scores / lengths[0][:, None] / lengths[1][None]

    def samples(self, data: Data, format: FormatConfig | None = None) -> list[Sample]:
        """Returns queries as samples: tokenised, with the tokens that are scored."""
        # A query needs no key of its own.
        format = replace(format or self.config.format, key_field=None)
        rows = list(open_rows(data))
        if not rows:
            raise InputError("there is no query in the data")
        return self._formatter(format).samples(rows)

    def vectors(self, samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the vectors of samples, [n, dim] float32, in the scale that is stored."""
        return np.stack([item.vector for item in self._encode(samples)])

    def scores(self, samples: list[Sample]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Returns the ids of all training samples [n] and their influence on queries [q, n].

        As the stored vectors have it; see `influence` for the exact form.
        """
        vectors = self.vectors(samples)
        ids, scores = self.store.answer(lambda: self.flat.scores(vectors))
        return ids, scores / np.float32(self.vectoriser.scale**2)

    def influence(self, queries: list[Sample], samples: list[Sample]) -> NDArray[np.float32]:
        """Returns the exact influence of samples on queries [q, n], by running both forward."""
        return Encoder(self.lm).influence(queries, samples, self.vectoriser.recipe)

    def training_samples(self, ids: Iterable[int]) -> list[Sample]:
        """Returns the training samples with these ids, in their order, as they were encoded."""
        stored = self.store.catalog.samples(ids)
        rows = [(f"sample {sample.key!r}", sample.row) for sample in stored.values()]
        return self._formatter().samples(rows)

    # -- looking after it ----------------------------------------------------------------------

    def remove(self, keys: Iterable[str] = (), *, where: Iterable[str] = ()) -> int:
        """Returns how many samples were removed: those under `keys`, or that meet `where`.

        They are in no answer from now on, and on disk until `compact`. A key that is not there is
        passed over, so that a removal can be run again.

        Raises:
            InputError: keys and conditions at once, or a condition that cannot be read.
            LockedError: another process is writing to the index.
        """
        keys, conditions = list(keys), list(where)
        if keys and conditions:
            raise InputError("keys and conditions were given: remove by one of them at a time")
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
        self, where: Iterable[str] = (), *, after: int = -1, limit: int | None = None
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
        self, vectors: str | Path, rows: str | Path, *, where: Iterable[str] = ()
    ) -> tuple[int, int]:
        """Writes vectors (.npy, float32 [n, dim]) and their rows (JSON Lines), in the same order.

        The inner product of two of these vectors is the influence of the samples on each other.
        Returns n and dim.

        Raises:
            StorageError: a file cannot be written.
        """
        conditions, scale = list(where), 1.0
        if self.store.fitted:
            scale = Vectoriser.from_bytes(
                self.store.vectoriser_bytes(), self.config.vector, torch.device("cpu")
            ).scale
        return self.store.answer(
            lambda: self.store.export(Path(vectors), Path(rows), conditions, scale)
        )

    def optimize(
        self,
        factory: str | None = None,
        *,
        rank: str = "dot",
        memory: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> tuple[DerivedInfo | None, str]:
        """Returns a derived index that queries of a rank use from now on, and why it is that one.

        It is None where comparing every vector is as well. `add`, `remove` and `compact` keep it
        current; deleting it loses nothing.

        Args:
            factory: a FAISS factory string, such as "IVF1024,SQ8"; default: what suits the number
                of samples, their vectors and the memory.
            rank: as in `query`.
            memory: bytes that it may take; default: half of what the machine has.
            progress: called with a stage, steps done and steps in all.

        Raises:
            InputError: FAISS does not know the factory, or there are too few samples for it.
            LockedError: another process is writing to the index.
        """
        reason = "it was asked for"
        if factory is None:
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            factory, reason = auto_factory(len(self), self.dim, memory or machine // 2)
            if factory == "Flat":
                return None, reason
        return upkeep.optimize(self.store, factory, rank, progress), reason

    def info(self) -> dict[str, Any]:
        """Returns what the index holds and what it was made with, as JSON values."""
        return self.store.info() | {
            "model": self.config.model.name,
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
    def lm(self) -> LanguageModel:
        """The model, loaded and checked against the fingerprint when it is first needed."""
        if self._lm is None:
            self._use(load_model(self.config.model, self._device))
        assert self._lm is not None
        return self._lm

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

    def _use(self, lm: LanguageModel) -> None:
        stored, found = self.store.catalog.fingerprint, _fingerprint(self.config, lm)
        differing = [name for name in found if stored[name] != found[name]]
        if differing:
            details = "; ".join(
                f"{name}: {stored[name]} there, {found[name]} here" for name in differing
            )
            raise FingerprintError(
                f"{self.directory} was made with another {' and '.join(differing)} than "
                f"{lm.name} has ({details}): give the original with --model, or build a new index"
            )
        self._lm = lm

    def _require_settings(self, format: FormatConfig, vector: VectorConfig) -> None:
        """Makes sure that a build that goes on was begun with the same settings."""
        if format.max_length is None:
            format = replace(format, max_length=self.config.format.max_length)
        wanted, found = asdict(format) | asdict(vector), asdict(self.config.format)
        found |= asdict(self.config.vector)
        differing = [f"{name}: {found[name]}" for name in wanted if wanted[name] != found[name]]
        if differing:
            raise IndexMissingError(
                f"{self.directory} holds an index made with other settings "
                f"({', '.join(differing)}): choose a new directory"
            )

    def _formatter(self, format: FormatConfig | None = None) -> Formatter:
        format = format or self.config.format
        return Formatter(self.lm.tokenizer, format, self.lm.max_length(format.max_length))

    def _encode(
        self,
        samples: list[Sample],
        report: Callable[[int, int], None] | None = None,
        ready: dict[str, Encoded] | None = None,
    ) -> list[Encoded]:
        """Returns the vectors of samples, in order, those in `ready` (by key) as they are there.

        `report` gets the samples and tokens done.
        """
        ready = ready or {}
        encoded = [ready.get(sample.key) for sample in samples]
        open_places = [i for i, item in enumerate(encoded) if item is None]
        done = len(samples) - len(open_places)
        tokens = sum(len(s.input_ids) for s in samples if s.key in ready)
        rest = [samples[i] for i in open_places]
        for batch in Encoder(self.lm).encode(rest, self.vectoriser):
            for position, item in batch:
                encoded[open_places[position]] = item
                tokens += len(rest[position].input_ids)
            done += len(batch)
            if report is not None:
                report(done, tokens)
        if report is not None:
            report(done, tokens)
        return [item for item in encoded if item is not None]

    @property
    def vectoriser(self) -> Vectoriser:
        """What turns the model's tokens into this index's vectors.

        Raises:
            IndexMissingError: the index is empty: it learns from the first rows that are added.
            CorruptIndexError: the file is not what was committed.
        """
        if self._vectoriser is None:
            data = self.store.vectoriser_bytes()
            self._vectoriser = Vectoriser.from_bytes(data, self.config.vector, self.lm.device)
        return self._vectoriser

    @property
    def dim(self) -> int:
        """Length of a stored vector; 0 as long as the index is empty."""
        return self.store.dim


def _fingerprint(config: IndexConfig, lm: LanguageModel) -> dict[str, Any]:
    """Returns all that two vectors must share for their inner product to mean anything.

    What the vectoriser learned joins it when the first rows are added.
    """
    return lm.fingerprint() | {
        "format": digest(asdict(config.format)),
        "vector": digest(asdict(config.vector)),
    }
