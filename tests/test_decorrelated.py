"""The rank "decorrelated": against a dense solve in plain numpy, wherever a rank can be given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index import view as view_module
from forvalue_index.analysis.select import select_rows
from forvalue_index.analysis.values import exact_values, values
from forvalue_index.cli import main
from forvalue_index.errors import InputError
from forvalue_index.records import Row
from forvalue_index.search import flat

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
    monkeypatch.setattr(flat, "_NUMBERS", 7 * index.dim)  # vectors come in blocks of 7
    assert_solved(index, queries)
    expected, ids = solved(index, queries), index.flat.ids
    hits = index.query(queries, k=5, rank="decorrelated", opponents=opponents)
    for number in range(QUERIES):
        own = [hit for hit in hits if hit.query == number]
        order = np.argsort(expected[number] if opponents else -expected[number])[:5]
        assert [hit.id for hit in own] == ids[order].tolist()
        scores = [hit.score for hit in own]
        np.testing.assert_allclose(scores, expected[number][order], rtol=1e-3, atol=1e-6)
        alone = index.query(queries[number], k=5, rank="decorrelated", opponents=opponents)
        assert [hit.id for hit in alone] == [hit.id for hit in own]
    plain = index.query(queries, k=5, opponents=opponents)
    assert [hit.key for hit in plain] != [hit.key for hit in hits]


def test_what_many_rows_share_counts_less(index: InfluenceIndex, train: list[Row]) -> None:
    common = np.array([row["source"] == "common" for row in train])
    ratios = []
    for rank in ("dot", "decorrelated"):
        scores = np.diagonal(index.scores(index.samples(train), rank)[1])  # of rows for themselves
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
        reader.query(queries[0], rank="decorrelated")
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
    assert index.query(queries, rank="decorrelated") == []


def test_the_moment_is_made_once_for_what_is_there(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = view_module.decorrelation
    monkeypatch.setattr(
        view_module, "decorrelation", lambda search: made.append(search) or real(search)
    )
    for _ in range(2):
        index.query(queries, rank="decorrelated")
        values(index, queries, rank="decorrelated")
    assert len(made) == 1
    index.query(queries)
    index.remove(["row-3"])
    index.query(queries, rank="decorrelated")
    assert len(made) == 2


def test_conditions_and_the_derived_index_for_dot_serve_it(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = index.query(queries, k=4, rank="decorrelated", where=["source=own"])
    scores = solved(index, queries)  # the moment is that of all rows
    for hit in plain:
        assert hit.score == pytest.approx(scores[hit.query, hit.id], rel=1e-3, abs=1e-6)
        assert hit.sample["source"] == "own"
    with pytest.raises(InputError, match="for dot also serves decorrelated"):
        index.optimize("Flat", rank="decorrelated")
    every = index.query(queries, k=4, rank="decorrelated")
    index.optimize("Flat")
    with InfluenceIndex.open(index.directory) as again:
        assert again.query(queries, k=4, rank="decorrelated", flat=True) == every
        monkeypatch.setattr(flat.FlatSearch, "search", None)
        assert again.query(queries, k=4, rank="decorrelated") == every


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_values_are_the_mean_or_highest_score(
    index: InfluenceIndex, queries: list[Row], combine: str
) -> None:
    expected = getattr(np, combine)(solved(index, queries), axis=0)
    found = values(index, queries, combine=combine, rank="decorrelated")
    np.testing.assert_allclose(found.value, expected, rtol=1e-3, atol=1e-5)
    places = found.best(3)
    chosen = select_rows(
        index, queries, 3, combine=combine, rank="decorrelated", diversity=0, dedup=None
    )
    assert chosen.tolist() == found.ids[places].tolist()


def test_there_is_no_exact_form(
    index: InfluenceIndex, queries: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="'decorrelated' is for stored vectors only"):
        index.query(queries, rank="decorrelated", exact=True)
    with pytest.raises(InputError, match="has no exact form"):
        exact_values(index, queries, [0], rank="decorrelated")
    with pytest.raises(InputError, match="'best' is not one of dot, cosine"):
        index.scores(index.samples(queries), "best")

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("forvalue_index.reading.load_model", refuse)
    data = index.directory.with_suffix(".jsonl")
    data.write_text('{"prompt": "a", "response": " b"}\n')
    for command, more in (("score", []), ("query", []), ("ask", ["--prompt", "a"])):
        options = more or ["--data", str(data)]
        args = [command, "--index", str(index.directory), *options]
        result = CliRunner().invoke(main, [*args, "--rank", "decorrelated", "--exact"])
        assert result.exit_code != 0
        assert "leave out exact" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_commands_take_it(index: InfluenceIndex, tmp_path: Path) -> None:
    data = tmp_path / "queries.jsonl"
    data.write_text('{"prompt": "who 7", "response": " said so"}\n')
    args = ["--index", str(index.directory), "--data", str(data), "--rank", "decorrelated"]
    outputs = {}
    for command in ("query", "score", "explain"):
        result = CliRunner().invoke(main, [command, *args, "--json"])
        assert result.exit_code == 0, result.output
        outputs[command] = result.stdout
    output = tmp_path / "chosen.jsonl"
    result = CliRunner().invoke(main, ["select", *args, "--budget", "3", "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert len(output.read_text().splitlines()) == 3
    assert '"rank": "decorrelated"' in outputs["score"]
