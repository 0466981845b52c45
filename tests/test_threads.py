"""One open index and many threads: what each is told is what it would be told alone."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from helpers.indexes import KEYED, SETTINGS, changed

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.analysis.audit.audit import audit
from forvalue_index.analysis.values import sample_values
from forvalue_index.data.labels import ClassFormatter
from forvalue_index.errors import ForvalueError, IndexMissingError, LockedError
from forvalue_index.model import head as heads
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.model.load import load_pretrained
from forvalue_index.model.model_lock import full_precision
from forvalue_index.records import Row
from forvalue_index.store import layout
from forvalue_index.store.store import Store

THREADS = 8

T = TypeVar("T")


def at_once(calls: list[Callable[[], T]]) -> list[T]:
    """Returns what the calls give, each in a thread of its own, all begun together."""
    start = Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(run, call) for call in calls]]


def found(index: InfluenceIndex, query: Row, **settings: Any) -> list[tuple[str, float]]:
    return [(hit.key, round(hit.score, 5)) for hit in index.query(query, 5, **settings)]


def test_queries_in_threads_get_their_own_answers(index: InfluenceIndex, rows: list[Row]) -> None:
    queries = rows[:THREADS]
    alone = [found(index, query) for query in queries]
    assert len({str(hits) for hits in alone}) > 1, "another thread's answer would be seen"

    def ask(query: Row) -> list[list[tuple[str, float]]]:
        return [found(index, query) for _ in range(10)]

    for own, answers in zip(alone, at_once([lambda q=q: ask(q) for q in queries]), strict=True):
        assert answers == [own] * 10


def test_a_pass_of_another_thread_is_not_taken_for_the_own(lm: LanguageModel) -> None:
    """Also one that the caller's own code makes, which takes no turns."""
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    inside, done = Event(), Event()
    seen: list[Any] = []

    def pass_by() -> Any:
        inside.wait()
        try:
            return lm.model(input_ids=torch.tensor([[9, 9]])).logits.shape
        finally:
            done.set()

    def probe() -> None:
        with torch.no_grad(), heads.head_input(lm.head.module, stop=True) as states:
            inside.set()
            done.wait()
            with pytest.raises(heads._HeadReachedError):
                lm.model(**ids)
            seen.append(states[0].shape)

    logits, _ = at_once([pass_by, probe])
    assert tuple(logits) == (1, 2, lm.head.vocabulary)
    assert seen == [(1, 4, lm.head.hidden)]


def test_the_first_queries_of_all_threads_load_the_model_once(
    tmp_path: Path, rows: list[Row], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InfluenceIndex.build(tmp_path / "i", rows, model_dir, **SETTINGS)[0].close()
    with InfluenceIndex.open(tmp_path / "i", device="cpu") as alone:
        expected = found(alone, rows[0])
    loads = itertools.count()
    real = load_model

    def counted(*args: Any) -> LanguageModel:
        next(loads)
        return real(*args)

    monkeypatch.setattr("forvalue_index.model.language_model.load_model", counted)
    with InfluenceIndex.open(tmp_path / "i", device="cpu") as index:
        answers = at_once([lambda: found(index, rows[0]) for _ in range(THREADS)])
    assert answers == [expected] * THREADS
    assert next(loads) == 1


def test_passes_and_loads_take_turns(
    index: InfluenceIndex, rows: list[Row], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters are switched for a pass, and transformers changes settings of torch to load."""
    at_work, most = 0, 0

    def watched(real: Callable[..., T]) -> Callable[..., T]:
        def call(*args: Any) -> T:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            time.sleep(0.01)
            try:
                return real(*args)
            finally:
                at_work -= 1

        return call

    monkeypatch.setattr(heads, "run", watched(heads.run))
    loading = "forvalue_index.model.language_model.load_pretrained"
    monkeypatch.setattr(loading, watched(load_pretrained))
    config = ModelConfig(str(model_dir))
    queries: list[Callable[[], Any]] = [lambda: found(index, rows[0]) for _ in range(4)]
    at_once([*queries, *(lambda: load_model(config, "cpu") for _ in range(4))])
    assert most == 1


def test_mixed_work_of_threads_beside_a_writer(
    tmp_path: Path, rows: list[Row], lm: LanguageModel
) -> None:
    """Queries of every kind, explanations and audits, while rows that answer nothing come and go.

    The rows that a writer adds are kept out of the queries by a condition.
    """
    marked = [row | {"kept": "yes"} for row in rows]
    index, _ = InfluenceIndex.build(tmp_path / "index", marked, lm, **SETTINGS)
    only = {"where": "kept=yes"}
    jobs: list[Callable[[], Any]] = []
    for number, row in enumerate(marked[:10]):
        jobs += [
            lambda r=row: found(index, r, **only),
            lambda r=row: found(index, r, metric="cosine", **only),
            lambda r=row: found(index, r, metric="per-token", opponents=True, **only),
            lambda r=row: found(index, r, exact=True, **only),
            lambda r=row, n=number: round(index.explain(r, str(marked[n + 1]["id"])).score, 5),
        ]
    jobs.append(lambda: sample_values(index, marked[:4], **only).value.round(5).tolist())
    jobs.append(lambda: audit(index, **only).scores["loss"].round(5).tolist())
    expected = [job() for job in jobs]
    drawn = random.Random(0).choices(range(len(jobs)), k=1000)
    stop = Event()

    def write() -> int:
        times = 0
        while not stop.is_set():
            index.add(
                [
                    changed(row, f" then {times}") | {"id": f"new-{i}"}
                    for i, row in enumerate(rows[:4])
                ],
                update=True,
            )
            index.remove(where="id=new-1")
            if times % 5 == 4:
                index.compact()
            times += 1
        return times

    def ask(part: list[int]) -> list[int]:
        return [number for number in part if jobs[number]() != expected[number]]

    with index, ThreadPoolExecutor(THREADS + 1) as pool:
        writer = pool.submit(write)
        try:
            wrong = list(pool.map(ask, [drawn[i::THREADS] for i in range(THREADS)]))
        finally:
            stop.set()
        assert writer.result() > 5
        assert wrong == [[]] * THREADS
        assert index.verify() == []


def test_a_second_writer_of_the_same_index_is_refused(
    index: InfluenceIndex, rows: list[Row]
) -> None:
    def write() -> str:
        with pytest.raises(LockedError) as refused:
            index.add(rows[:1])
        return str(refused.value)

    with index.store.writer.lock():
        [message] = at_once([write])
    assert "being written to" in message


class _Removing:
    """Removes the first row, and compacts if asked, before the figures are read."""

    def __init__(self, index: InfluenceIndex, *, compact: bool) -> None:
        self._directory, self._compact = index.directory, compact
        self._figures = index.store.beside.sides.all_of
        self.times = 0

    def __call__(self, *arguments: Any) -> Any:
        if not self.times:
            self.times += 1
            with InfluenceIndex.open(self._directory) as other:
                [first, *_] = other.rows()
                other.remove(first.key)
                if self._compact:
                    other.compact()
        return self._figures(*arguments)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("what", ["score", "audit", "cosine"])
def test_figures_are_of_the_rows_that_they_stand_beside(
    index: InfluenceIndex,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    compact: bool,
) -> None:
    """Another process removes a row between the vectors and the figures.

    The answer is that of the rows as they stood, or it is asked again.
    """
    losses = {row.id: row.loss for row in index.rows()}
    removing = _Removing(index, compact=compact)
    monkeypatch.setattr(index.store.beside.sides, "all_of", removing)
    if what == "cosine":
        hits = index.query(rows[3], 100, metric="cosine")
        assert sorted(hit.id for hit in hits) in (sorted(losses), sorted(losses)[1:])
    else:
        given = sample_values(index, rows[:3]) if what == "score" else audit(index)
        loss = given.loss if what == "score" else given.scores["loss"]
        assert given.ids.tolist() in (sorted(losses), sorted(losses)[1:])
        np.testing.assert_allclose(loss, [losses[id] for id in given.ids.tolist()])
    assert removing.times == 1


def test_a_listing_goes_on_when_its_rows_are_compacted_away(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forvalue_index.store.rows.PAGE", 10)
    every = [row.id for row in index.rows()]
    given = index.rows("id!=none")
    seen = [next(given).id]
    with InfluenceIndex.open(index.directory) as other:
        for row in list(other.rows())[15:20]:
            other.remove(row.key)
        other.compact()
    seen += [row.id for row in given]
    assert seen == every[:15] + every[20:]


def test_an_index_that_a_build_opened_is_closed_when_a_check_fails(
    tmp_path: Path, rows: list[Row], lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    InfluenceIndex.build(tmp_path / "index", rows, lm, **SETTINGS)[0].close()
    closed: list[Path] = []
    real = Store.close

    def close(self: Store) -> None:
        closed.append(self.directory)
        real(self)

    monkeypatch.setattr(Store, "close", close)
    with pytest.raises(IndexMissingError, match="other settings"):
        InfluenceIndex.build(tmp_path / "index", rows, lm, format=KEYED, vector=VectorConfig(dim=8))
    with pytest.raises(ForvalueError):
        InfluenceIndex.build(tmp_path / "index", [{"nothing": 1}], lm, **SETTINGS)
    assert closed == [tmp_path / "index"] * 2


def test_explaining_keeps_what_was_learned_of_the_memory(
    index: InfluenceIndex, rows: list[Row]
) -> None:
    index.session.encoder.runner.token_budget = 7
    index.explain(rows[0], str(rows[1]["id"]))
    index.contributions(rows[0], index.query(rows[0], 3))
    assert index.session.encoder.runner.token_budget == 7
    assert index.session.encoder is index.session.encoder


@pytest.fixture
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("as_before")
def test_the_model_is_read_in_full_precision_whatever_the_process_allows(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    seen: list[tuple[str, bool]] = []
    real = heads.run

    def run(*args: Any) -> Any:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return real(*args)

    monkeypatch.setattr(heads, "run", run)
    index.query(rows[0])
    assert set(seen) == {("highest", False)}
    assert torch.get_float32_matmul_precision() == "medium"
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("as_before")
@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
def test_settings_of_single_operators_are_given_back() -> None:
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with full_precision():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_rows_are_tokenised_in_threads(lm: LanguageModel) -> None:
    """A tokenizer that is told to truncate cannot be used by another thread meanwhile."""
    config = FormatConfig(text_field="text", label_field="label")
    formatter = ClassFormatter(lm.tokenizer, config, 5, {"a": 0, "b": 1})
    rows = [("rows", {"text": "the cat sat " * n, "label": "a"}) for n in (1, 100) * 20]
    alone = [len(sample.input_ids) for sample in formatter.samples(rows)]

    def tokenise() -> list[int]:
        return [len(sample.input_ids) for sample in formatter.samples(rows)]

    assert at_once([tokenise] * THREADS) == [alone] * THREADS


def test_a_file_that_goes_while_the_bytes_are_counted_counts_for_nothing(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the temporary file does in which a reader remembers what it has checked."""
    expected = index.info()["bytes"]
    passing = index.directory / "checked.json.0.tmp"
    passing.write_text("{}")
    real = layout.files

    def listed(folder: Path) -> list[Path]:
        found = real(folder)
        passing.unlink(missing_ok=True)
        assert passing in found
        return found

    monkeypatch.setattr(layout, "files", listed)
    assert layout.size(index.directory) == expected
