"""The index: one method per verb, each in the file of its name in `pipeline/` or `store/`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forvalue_index import pipeline
from forvalue_index.analysis.verbs import AnalysisVerbs
from forvalue_index.cluster.verbs import ClusterVerbs
from forvalue_index.errors import InputError
from forvalue_index.pipeline.accessors import Closed, IndexAccessors
from forvalue_index.records import Hits, QueryVectors, listed
from forvalue_index.store.verbs import StoreVerbs

if TYPE_CHECKING:
    from forvalue_index.config import FormatConfig, VectorConfig
    from forvalue_index.data.sources import Data
    from forvalue_index.metric import Metric
    from forvalue_index.model.generation import Sampling
    from forvalue_index.model.language_model import LanguageModel as LanguageModel
    from forvalue_index.pipeline.add import AddReport
    from forvalue_index.pipeline.open import Model
    from forvalue_index.pipeline.session import Queries, Session
    from forvalue_index.records import (
        Explanation,
        Hit,
        Passage,
        Progress,
        Row,
        Sample,
    )
    from forvalue_index.search.common import Ids, Scores
    from forvalue_index.server.background import PageServer


class InfluenceIndex(IndexAccessors, StoreVerbs, AnalysisVerbs, ClusterVerbs):
    """A persistent index of a training set that tells which of its samples drove an output.

    Use it in a `with` block or close it. A query answers from the samples that are there when it
    begins, whoever wrote them. Threads may share an open index: forward passes take turns, searches
    run side by side, and a second writer is refused.

    A query is a row in the form of the index's own, or a sample such as `respond` and `part`
    return; `format` is how it becomes tokens, if not as the index's rows do.

    More methods are in `IndexAccessors` (model, vectors), `StoreVerbs` (rows, remove, compact,
    export, optimize, verify), `AnalysisVerbs` (score, audit, select, evaluate) and `ClusterVerbs`
    (learn, build_shard, attach).
    """

    def __init__(self, session: Session) -> None:
        """`create`, `open` and `build` are the ways to get one."""
        if isinstance(session, str | Path):
            raise InputError(
                f"InfluenceIndex({str(session)!r}) opens nothing: use InfluenceIndex.open(...), or "
                "InfluenceIndex.build(...) for a new one"
            )
        self.session = session
        self.store = session.store
        self.config = session.config
        self.directory = session.store.directory
        self._held = ExitStack()  # what is left when the index is closed

    @classmethod
    def create(
        cls,
        directory: str | Path,
        model: Model,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
        shards: int | None = None,
    ) -> InfluenceIndex:
        """Returns a new, empty index in `directory`, which must not exist, or be empty.

        Args:
            model: a path, a hub id, how to read one, or `wrap_model(model, tokenizer)`.
            format: how a row becomes tokens; default: fields "prompt" and "response".
            vector: how a sample becomes a vector.
            catalog: URL of a PostgreSQL database for rows and metadata, such as
                postgresql+psycopg://user@host/name; default: SQLite, in `directory`. The URL is
                kept there and named to this machine (see `forvalue_index.catalog.address`).
            device: "cpu", "cuda" or "cuda:1"; default: CUDA when there is one.
            shards: keep the rows in so many indexes, each row in that of its key, for more rows
                than one machine can hold; default: in one.

        Raises:
            IndexMissingError: `directory` is not empty.
            ModelError: the model cannot be loaded, or its head is not understood.
        """
        return cls(pipeline.build.create(directory, model, format, vector, catalog, device, shards))

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        model: Model | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        partial: bool = False,
        ray: str | None = None,
    ) -> InfluenceIndex:
        """Returns the index in `directory`. Its model is loaded when it is first needed.

        Args:
            model: if it, or an adapter, has moved. Only what is named here is fetched from the hub.
            device: as in `create`.
            trust_remote_code: run code that comes with the model; an index never decides that.
            partial: where shards are missing, answer from the others, with a warning.
            ray: use a Ray cluster, whose actors hold the shards: see `on_ray`.

        Raises:
            IndexMissingError: there is no index in `directory`.
            SchemaError: the index was written by another version of this package.
            FingerprintError: `model` is loaded, and not the one the index was made with.
        """
        session = pipeline.open.open_session(directory, model, device, trust_remote_code, partial)
        index = cls(session)
        if ray is not None:
            try:
                index._held.enter_context(index.on_ray(ray, partial=partial))
            except BaseException:
                index.close()
                raise
        return index

    @classmethod
    def from_hub(
        cls,
        repo: str,
        directory: str | Path | None = None,
        *,
        revision: str | None = None,
        model: Model | None = None,
        device: str | None = None,
        token: str | None = None,
    ) -> InfluenceIndex:
        """Returns an index of the Hugging Face hub: `pull`, then `open`.

        Its model is not fetched unless it is named here: what an index says of it is not trusted.
        """
        return cls.open(
            cls.pull(repo, directory, revision=revision, token=token), model=model, device=device
        )

    @classmethod
    def build(
        cls,
        directory: str | Path,
        data: Data,
        model: Model,
        *,
        format: FormatConfig | None = None,
        vector: VectorConfig | None = None,
        catalog: str | None = None,
        device: str | None = None,
        devices: str | Sequence[str | int] | None = None,
        on_error: str = "stop",
        progress: Progress | None = None,
        shards: int | None = None,
    ) -> tuple[InfluenceIndex, AddReport]:
        """Returns a new index of `data` and what was added: `create`, then `add`.

        Arguments and errors are those of the two; without a `format`, it is guessed from the names
        of the first row's fields. The rows are checked before the model is loaded. A build that
        fails before the first commit leaves nothing; later, the same call continues it.
        """
        session, report = pipeline.build.build(
            directory,
            data,
            model,
            format,
            vector,
            catalog,
            device,
            devices,
            on_error,
            progress,
            shards,
        )
        return cls(session), report

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
        found = pipeline.from_trainer.trained(trainer, format, checkpoints)
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
        """Closes the catalogue, the segments and the model."""
        self._held.close()
        self.session.close()
        closed: Any = Closed(self.directory)
        self.session = self.store = closed

    def __enter__(self) -> InfluenceIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.store)

    def __reduce__(self) -> Any:
        raise InputError(
            "an open index cannot be copied to another process: give it the directory, and open "
            "the index there"
        )

    def __repr__(self) -> str:
        if isinstance(self.session, Closed):
            return f"<InfluenceIndex {str(self.directory)!r}: closed>"
        name, vector = Path(self.config.model.name).name, self.config.vector
        return (
            f"<InfluenceIndex {str(self.directory)!r}: {len(self):,} samples of {name}, "
            f"{vector.dim:,} numbers each>"
        )

    def serve(self, port: int = 0, *, allow_write: bool = False) -> PageServer:
        """Returns a server of the page for this machine, which works until it is stopped.

        In a notebook it is shown as a link. Other machines are let in by `forvalue serve`.

        Args:
            port: to listen at; 0: any that is free.
            allow_write: let the page add and remove rows, and keep decisions about them.

        Raises:
            DependencyError: the packages of the extra `serve` are not installed.
            InputError: the port is taken.
        """
        from forvalue_index.server.background import PageServer

        return PageServer(self, port, allow_write=allow_write)

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

        All rows are checked first. One whose key is there with the same content is skipped without
        a forward pass, so that an interrupted `add`, run again, continues after its last commit.

        Args:
            data: paths of files, a row (a dict), rows, a `datasets.Dataset`, or `open_rows(...)`.
            update: replace rows whose key is there with other content, which are refused otherwise.
            on_error: "stop" at a row that cannot be used, or "skip" it into INDEX/rejects.jsonl.
            progress: called as the work goes on.
            devices: encode on several: "0,1" or [0, 1] (GPUs), "all" (of them), or names such as
                "cuda:1" and "cpu". Each but the first gets a process, so a script that uses this
                needs `if __name__ == "__main__":` around what it does.

        Raises:
            InputError: a file does not exist, or a loaded model is to be on several devices.
            WorkerError: the process of a device died; what was committed stays.
            RowError: a row is not JSON, lacks a field, or holds nothing to score.
            KeyConflictError: a key occurs twice in the input, or is there with other content.
            FingerprintError: the model is not the one that the index was made with.
            ModelError: the model gives NaN or infinity.
            LockedError: another process is writing to the index.
            StorageError: the disk is full; what was committed stays.
        """
        return pipeline.add.add(self.session, data, update, on_error, progress, devices)

    def query(
        self,
        data: Queries,
        k: int = 10,
        *,
        opponents: bool = False,
        metric: str | Metric = "dot",
        where: str | Iterable[str] = (),
        exact: bool = False,
        candidates: int | None = None,
        flat: bool = False,
        format: FormatConfig | None = None,
    ) -> Hits:
        """Returns the k samples that most raised the likelihood of each query's response.

        Hits are ordered by query, then by rank. When fewer than k samples can be a hit, all are.

        Args:
            data: a query, queries, or paths of files with rows.
            k: hits per query.
            opponents: return those that most lowered it instead, the most harmful first.
            metric: "dot", the influence; "cosine", free of how large both gradients are;
                "per-token", the influence over the scored tokens of both; "decorrelated", the
                influence with what many samples share damped (`search/decorrelate.py`); "lexical",
                the words that both share, by BM25; or "hybrid", words, cosine and state, best for
                finding where something came from.
            where: conditions on the rows' fields, such as "source=math"; all must hold.
            exact: rank and score the best candidates by the exact form, in forward passes; there is
                none of "decorrelated" and of metrics with words.
            candidates: how many; default: as many as hold the exact k best with a chance of 99 %,
                as measured when the index was fitted (10 k if it was not).
            flat: compare every vector, even when there is a derived index (see `optimize`).

        Raises:
            InputError: there is no query or file, k is not positive, a condition cannot be read, or
                the metric is not known, has no exact form or no opponents.
            RowError: a query lacks a field or holds nothing to score.
            FingerprintError: the model is not the one that the index was made with.
            CorruptIndexError: a segment is not what was committed.
        """
        found = pipeline.query.query(
            self.session, data, k, opponents, metric, where, exact, candidates, flat, format
        )
        return Hits(found)

    def search(
        self, words: str | Sequence[str], k: int = 10, *, where: str | Iterable[str] = ()
    ) -> Hits:
        """Returns the k rows that share most with each text, by BM25. Loads no model.

        A row that shares no word is no hit.

        Raises:
            InputError: k is not positive, or a condition cannot be read.
        """
        return Hits(pipeline.hybrid.search(self.session, listed(words), k, where))

    def explain(
        self, query: Row | Sample, key: str, *, format: FormatConfig | None = None
    ) -> Explanation:
        """Returns the exact influence of one training sample on a query, token by token.

        Raises:
            InputError: there is no such key.
        """
        return pipeline.explain.explain(self.session, query, key, format)

    def contributions(
        self, query: Row | Sample, hits: Iterable[Hit], *, format: FormatConfig | None = None
    ) -> list[Passage]:
        """Returns the tokens of hits with what each adds to the exact influence on their query."""
        return pipeline.explain.contributions(self.session, query, hits, format)

    def respond(
        self,
        prompt: str | Row,
        sampling: Sampling | None = None,
        *,
        format: FormatConfig | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Sample:
        """Returns what the model answers to a prompt, as a sample to query with.

        The prompt is a text, or a row without an answer. Without `sampling`, the answer is the most
        likely tokens, 256 at most; `report` is called with each word as it comes.

        Raises:
            InputError: the prompt is empty or too long, or the model answers with nothing.
        """
        return pipeline.respond.respond(self.session, prompt, sampling, format, report)

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
        return pipeline.respond.instead(self.session, query, text, format)

    def part(
        self,
        query: Row | Sample,
        span: str | None = None,
        *,
        tokens: slice | None = None,
        format: FormatConfig | None = None,
    ) -> Sample:
        """Returns a query of which only a part of the response is scored: that is asked about.

        The part is the first occurrence of the text `span`, with the tokens that it shares, or the
        `tokens` among the scored ones, such as slice(0, 5).

        Raises:
            InputError: that is no part of the response, or not one of the two was given.
        """
        return pipeline.explain.part_of(self.session, query, span, tokens, format)

    def samples(self, data: Queries, format: FormatConfig | None = None) -> list[Sample]:
        """Returns queries as samples: tokenised, with the tokens that are scored."""
        return self.session.samples(data, format)

    def scores(
        self,
        samples: list[Sample],
        metric: str | Metric = "dot",
        *,
        vectors: Scores | QueryVectors | None = None,
    ) -> tuple[Ids, Scores]:
        """Returns the ids of all training samples [n] and their stored scores for queries [q, n].

        Under the metric "dot" these are influence; see `influence` for the exact form. `vectors`
        are those of the queries, if they are known: then the model is not run. States, which
        "hybrid" compares, come with `query_vectors`.
        """
        known = None if vectors is None else QueryVectors.of(vectors)
        return pipeline.query.scores(self.session, samples, metric, known)

    def info(self) -> dict[str, Any]:
        """Returns what the index holds and what it was made with, as JSON values."""
        config = self.config
        model = {"model": config.model.name, "adapters": list(config.model.adapters)}
        return self.store.info() | model | {"config": config.to_json()}
