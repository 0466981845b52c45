"""The metric "decorrelated": against a solve in plain numpy, wherever a metric can be given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.select import select
from forvalue_index.analysis.values import exact_values, sample_values
from forvalue_index.cli import main
from forvalue_index.errors import InputError
from forvalue_index.records import Row
from forvalue_index.search import moment, stored
from forvalue_index.search.flat import FlatSearch
from forvalue_index.store.writer import Writer

QUERIES = 6


@pytest.fixture()
def train(rows: list[Row]) -> list[Row]:
    """Rows of which a third say the same, and queries that are not among them."""
    said = [row | {"response": " said so", "source": "common"} for row in rows[:10]]
    return said + [row | {"source": "own"} for row in rows[10:]]


@pytest.fixture()
def queries(rows: list[Row]) -> list[Row]:
    return [row | {"prompt": f"who {row['n']}"} for row in rows[7 : 7 + QUERIES]]


@pytest.fixture()
def index(tmp_path: Path, model_dir: Path, train: list[Row]) -> Iterator[InfluenceIndex]:
    index, _ = InfluenceIndex.build(
        tmp_path / "index",
        train,
        str(model_dir),
        format=FormatConfig(key_field="id"),
        vector=VectorConfig(dim=48, sketch_dim=256),
    )
    with index:
        yield index


def solved(index: InfluenceIndex, queries: list[Row]) -> NDArray[Any]:
    """The scores [q, n] of all live samples, in the order of their ids, by a solve among them."""
    scale = index.vectoriser.scale
    x = index.flat.vectors(index.flat.ids).astype(np.float64) / scale
    q = index.vectors(index.samples(queries)).astype(np.float64) / scale
    # q (C + mu)^-1 x^T of C = x^T x / n, from the n x n side: the eigenvalues are the same.
    gram = x @ x.T / len(x)
    damping = np.trace(gram @ gram) / np.trace(gram)
    result: NDArray[Any] = damping * np.linalg.solve(gram + damping * np.eye(len(x)), x @ q.T).T
    return result


def assert_solved(index: InfluenceIndex, queries: list[Row]) -> None:
    ids, scores = index.scores(index.samples(queries), "decorrelated")  # sees what was written
    expected = solved(index, queries)
    np.testing.assert_array_equal(ids, index.flat.ids)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("opponents", [False, True])
def test_hits_are_those_of_a_dense_solve(
    index: InfluenceIndex, queries: list[Row], opponents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_NUMBERS", 7 * index.dim)  # vectors come in blocks of 7
    assert_solved(index, queries)
    expected, ids = solved(index, queries), index.flat.ids
    hits = index.query(queries, k=5, metric="decorrelated", opponents=opponents)
    for number in range(QUERIES):
        own = [hit for hit in hits if hit.query == number]
        order = np.argsort(expected[number] if opponents else -expected[number])[:5]
        assert [hit.id for hit in own] == ids[order].tolist()
        scores = [hit.score for hit in own]
        np.testing.assert_allclose(scores, expected[number][order], rtol=1e-3, atol=1e-6)
        alone = index.query(queries[number], k=5, metric="decorrelated", opponents=opponents)
        assert [hit.id for hit in alone] == [hit.id for hit in own]
    plain = index.query(queries, k=5, opponents=opponents)
    assert [hit.key for hit in plain] != [hit.key for hit in hits]


def test_what_many_rows_share_counts_less(index: InfluenceIndex, train: list[Row]) -> None:
    common = np.array([row["source"] == "common" for row in train])
    ratios = []
    for metric in ("dot", "decorrelated"):
        scores = np.diagonal(
            index.scores(index.samples(train), metric)[1]
        )  # of rows for themselves
        ratios.append(scores[common].mean() / scores[~common].mean())
    assert ratios[1] < 0.8 * ratios[0]


def test_copies_of_all_rows_change_nothing(
    index: InfluenceIndex, tmp_path: Path, train: list[Row], queries: list[Row]
) -> None:
    before = index.scores(index.samples(queries), "decorrelated")[1]
    index.add([row | {"id": f"again-{row['id']}"} for row in train])
    after = index.scores(index.samples(queries), "decorrelated")[1]
    np.testing.assert_allclose(after[:, :30], before, rtol=1e-3, atol=1e-4 * np.abs(before).max())


def test_removed_rows_leave_the_moment(
    index: InfluenceIndex, queries: list[Row], train: list[Row]
) -> None:
    before = index.scores(index.samples(queries), "decorrelated")[1]
    with InfluenceIndex.open(index.directory) as reader:
        reader.query(queries[0], metric="decorrelated")
        index.remove(where=["source=common"])
        for each in (index, reader):
            assert_solved(each, queries)
            after = each.scores(each.samples(queries), "decorrelated")[1]
            assert not np.allclose(after, before[:, 10:], rtol=0.05)
    index.compact()
    assert_solved(index, queries)
    index.add(train[:10])
    assert_solved(index, queries)
    index.remove(where=["n>=0"])
    assert index.query(queries, metric="decorrelated") == []


@pytest.fixture()
def summed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids whose vectors were read for the second moment, a list for each time."""
    found: list[list[int]] = []
    real = moment._sum

    def watched(flat: FlatSearch, ids: NDArray[np.int64]) -> Any:
        if len(ids):
            found.append(ids.tolist())
        return real(flat, ids)

    monkeypatch.setattr(moment, "_sum", watched)
    return found


def moment_of(index: InfluenceIndex) -> Path:
    return index.directory / "derived" / moment.MOMENT


def test_only_what_is_new_or_gone_is_read(
    index: InfluenceIndex, queries: list[Row], summed: list[list[int]]
) -> None:
    for _ in range(2):
        index.query(queries, metric="decorrelated")
        sample_values(index, queries, metric="decorrelated")
    assert summed == [list(range(30))]
    with InfluenceIndex.open(index.directory) as reader:  # another process finds it
        assert_solved(reader, queries)
        assert len(summed) == 1
        index.add([row | {"id": f"new-{row['n']}"} for row in queries[:2]])
        index.remove(["row-3"])
        assert_solved(reader, queries)
        assert summed[1:] == [[30, 31], [3]]
        index.remove(["row-4"])
        index.compact()  # reads what leaves
        assert summed[3:] == [[4]]
        for each in (index, reader):
            assert_solved(each, queries)
        assert len(summed) == 4
    assert index.verify() == []


def test_a_small_index_keeps_nothing(
    index: InfluenceIndex, queries: list[Row], summed: list[list[int]]
) -> None:
    """Half as many samples as numbers or fewer: their inner products are enough."""
    index.remove([f"row-{i}" for i in range(6)])
    assert 2 * len(index) == index.dim
    assert_solved(index, queries)
    assert not summed and not moment_of(index).exists()


def test_compaction_leaves_nothing_of_removed_rows(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.query(queries, metric="decorrelated")
    whole = moment_of(index).read_bytes()
    index.remove(["row-3"])
    real = Writer.sweep

    def swept(self: Writer) -> list[Path]:
        assert not moment_of(index).exists()  # also if it were killed here
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "sweep", swept)
        index.compact()
    kept = index.store.moments._read(index.flat)
    assert kept is not None and moment_of(index).read_bytes() != whole
    vectors = index.flat.vectors(index.flat.ids)
    np.testing.assert_allclose(kept.total, vectors.T @ vectors, atol=1e-5 * vectors.max() ** 2)
    assert not [*moment_of(index).parent.glob("*.tmp")]


def test_a_sum_that_was_much_larger_is_made_again(
    index: InfluenceIndex, summed: list[list[int]]
) -> None:
    """float32 keeps little of the others beside a row that was 1,000 times as long."""
    total = moment._sum(index.flat, index.flat.ids)
    before = index.flat
    index.remove(["row-3"])
    index.store.snapshots.refresh()
    vectors = index.flat.vectors(index.flat.ids)
    for most, read in ((0.0, [3]), (1e6 * float(np.trace(total)), index.flat.ids.tolist())):
        known = moment.SecondMoment(total, {}, before.ids[:0], most).now_of(before)
        made = moment._brought_up_to(index.flat, known)
        assert summed[-1] == read
        np.testing.assert_allclose(made.total, vectors.T @ vectors, rtol=1e-3, atol=1e-4)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the sum": lambda data: data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:],
    "a bit of the digest": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "the end": lambda data: data[:-100],
    "all": lambda data: b"",
    "more": lambda data: data + bytes(10**6),
    "another segment": lambda data: sealed(data, "segments", {"x.faiss": "0" * 64}),
    "another hash": lambda data: sealed(data, "segments", {"000000000000.faiss": "0" * 64}),
    "no segments": lambda data: sealed(data, "segments", None),
    "no ids": lambda data: sealed(data, "left_out", "x"),
    "no list": lambda data: sealed(data, None, None),
}


def sealed(data: bytes, name: str | None, value: Any) -> bytes:
    """The file with another value in its account, and the digest that is then right."""
    head, rest = data[:-64].split(b"\n", 1)
    account = [] if name is None else json.loads(head) | {name: value}
    made = json.dumps(account).encode() + b"\n" + rest
    return made + hashlib.sha256(made).hexdigest().encode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(
    index: InfluenceIndex, queries: list[Row], damage: str, summed: list[list[int]]
) -> None:
    index.query(queries, metric="decorrelated")
    sound = moment_of(index).read_bytes()
    moment_of(index).write_bytes(DAMAGES[damage](sound))
    assert len(index.verify()) == 1 and "second-moment.bin is damaged" in index.verify()[0]
    del summed[:]
    with InfluenceIndex.open(index.directory) as reader:
        assert_solved(reader, queries)
    assert summed == [list(range(30))]
    assert moment_of(index).read_bytes() == sound
    moment_of(index).write_bytes(DAMAGES[damage](sound))
    assert index.repair() == [f"removed {moment_of(index)}, which was damaged or out of date"]
    assert not moment_of(index).exists() and index.verify() == []


def test_a_reader_writes_only_where_nobody_else_does(
    index: InfluenceIndex, queries: list[Row], summed: list[list[int]]
) -> None:
    with InfluenceIndex.open(index.directory) as reader:
        with index.store.writer.lock():
            assert_solved(reader, queries)
        assert not moment_of(index).exists()
        reader.store.snapshots.drop()
        assert_solved(reader, queries)
        assert summed == [list(range(30))]  # it was kept in memory
        index.remove(["row-3"])
        assert_solved(reader, queries)
        assert summed[1:] == [[3]] and moment_of(index).exists()
        # One that was begun before something was removed is not written after.
        view = reader.store.snapshots.current
        moment_of(index).unlink()
        index.remove(["row-4"])
        reader.store.moments.of(view.flat, view._writing)
        assert not moment_of(index).exists()
    assert not [*moment_of(index).parent.glob("*.tmp")]


def test_conditions_and_the_derived_index_for_dot_serve_it(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = index.query(queries, k=4, metric="decorrelated", where=["source=own"])
    scores = solved(index, queries)  # the moment is that of all rows
    for hit in plain:
        assert hit.score == pytest.approx(scores[hit.query, hit.id], rel=1e-3, abs=1e-6)
        assert hit.sample["source"] == "own"
    with pytest.raises(InputError, match="dot, which also serves decorrelated"):
        index.optimize("Flat", metric="decorrelated")
    every = index.query(queries, k=4, metric="decorrelated")
    index.optimize("Flat")
    with InfluenceIndex.open(index.directory) as again:
        assert again.query(queries, k=4, metric="decorrelated", flat=True) == every
        monkeypatch.setattr(FlatSearch, "search", None)
        assert again.query(queries, k=4, metric="decorrelated") == every


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_values_are_the_mean_or_highest_score(
    index: InfluenceIndex, queries: list[Row], combine: str
) -> None:
    expected = getattr(np, combine)(solved(index, queries), axis=0)
    found = sample_values(index, queries, combine=combine, metric="decorrelated")
    np.testing.assert_allclose(found.value, expected, rtol=1e-3, atol=1e-5)
    places = found.best(3)
    chosen = select(
        index, queries, budget=3, combine=combine, metric="decorrelated", diversity=0, dedup=None
    )
    assert chosen.ids.tolist() == found.ids[places].tolist()


def test_there_is_no_exact_form(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="'decorrelated' is for stored vectors only"):
        index.query(queries, metric="decorrelated", exact=True)
    with pytest.raises(InputError, match="has no exact form"):
        exact_values(index, queries, [0], metric="decorrelated")
    with pytest.raises(InputError, match="'best' is not one of dot, cosine"):
        index.scores(index.samples(queries), "best")

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("forvalue_index.model.language_model.load_model", refuse)
    data = index.directory.with_suffix(".jsonl")
    data.write_text('{"prompt": "a", "response": " b"}\n')
    for command, more in (("score", []), ("query", []), ("ask", ["--prompt", "a"])):
        options = more or ["--data", str(data)]
        args = [command, "--index", str(index.directory), *options]
        result = CliRunner().invoke(main, [*args, "--metric", "decorrelated", "--exact"])
        assert result.exit_code != 0
        assert "leave out exact" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_commands_take_it(index: InfluenceIndex, tmp_path: Path) -> None:
    data = tmp_path / "queries.jsonl"
    data.write_text('{"prompt": "who 7", "response": " said so"}\n')
    args = ["--index", str(index.directory), "--data", str(data), "--metric", "decorrelated"]
    outputs = {}
    for command in ("query", "score", "explain"):
        result = CliRunner().invoke(main, [command, *args, "--json"])
        assert result.exit_code == 0, result.output
        outputs[command] = result.stdout
    output = tmp_path / "chosen.jsonl"
    result = CliRunner().invoke(main, ["select", *args, "--budget", "3", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert len(output.read_text().splitlines()) == 3
    assert '"metric": "decorrelated"' in outputs["score"]
