"""How true stored vectors are: measured when they are made, and used to choose candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.indexes import KEYED

from forvalue_index import VectorConfig
from forvalue_index.analysis.evaluate.metrics import kept
from forvalue_index.index import InfluenceIndex
from forvalue_index.model import fidelity as module
from forvalue_index.model.fidelity import among_themselves, compared
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.pipeline import query as asking
from forvalue_index.pipeline.fidelity import affordable, measure
from forvalue_index.records import Fidelity, Row
from forvalue_index.vectors.codes import Codes

VECTOR = VectorConfig(dim=64, sketch_dim=512)


def some(n: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(0, 60, count))

    return [{"id": f"{seed}-{i}", "prompt": words(4), "response": " " + words(6)} for i in range(n)]


def test_the_figure_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((60, 48), np.float32)
    exact = (vectors @ vectors.T)[:7] + rng.standard_normal((7, 60), np.float32)
    codes = Codes(48, 2)
    stored = vectors[:7] @ codes.decode(codes.encode(vectors)).T
    shares = [kept(np.delete(exact[i], i), np.delete(stored[i], i), 10) for i in range(7)]
    found = among_themselves(exact, vectors, 2)
    assert found is not None
    assert found.top_10 == pytest.approx(np.mean(shares), abs=1e-4)
    assert found.error == pytest.approx(np.std(shares, ddof=1) / 7**0.5, abs=1e-4)
    assert (found.queries, found.rows) == (7, 59)
    assert found.margin > 0


def test_what_is_stored_exactly_needs_no_margin() -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 48)).astype(np.float32)
    found = among_themselves((vectors @ vectors.T)[:5], vectors, 16)
    assert found is not None
    assert found.top_10 == 1 and found.margin < 1e-3


def test_few_samples_say_nothing() -> None:
    vectors = np.ones((40, 8), np.float32)
    assert among_themselves(vectors[:5] @ vectors.T, vectors, 4) is None


def test_it_has_fallen_only_by_more_than_chance() -> None:
    before = Fidelity(0.95, 0.01, 12, 64, 0.01)
    assert Fidelity(0.80, 0.02, 12, 64, 0.01).fallen_from(before)
    assert not Fidelity(0.92, 0.005, 12, 64, 0.01).fallen_from(before)
    assert not Fidelity(0.80, 0.10, 12, 64, 0.01).fallen_from(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Any:
    folder = tmp_path_factory.mktemp("fidelity") / "i"
    index, report = InfluenceIndex.build(folder, some(400), lm, format=KEYED, vector=VECTOR)
    with index:
        yield index, report


def test_a_build_says_how_true_its_vectors_are(built: Any) -> None:
    index, report = built
    assert report.fidelity == report.expected_fidelity == index.store.fidelity
    assert index.info()["fidelity"]["top_10"] == report.fidelity.top_10
    assert 0.3 < report.fidelity.top_10 <= 1


def test_exact_influence_is_summed_as_it_is_computed(built: Any) -> None:
    index, _ = built
    samples = index.training_samples(index.flat.ids[:30])
    exact = module.Exact(index.session.encoder, index.vectoriser, samples, 5)
    list(index.session.encoder.encode(samples, index.vectoriser, witness=exact))
    expected = index.influence(samples[:5], samples)
    np.testing.assert_allclose(exact.scores, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


def test_vectors_are_the_same_under_a_witness(built: Any) -> None:
    index, _ = built
    samples = index.training_samples(index.flat.ids[:30])
    encoder = index.session.encoder
    exact = module.Exact(encoder, index.vectoriser, samples, 3)
    with_one = dict(p for b in encoder.encode(samples, index.vectoriser, witness=exact) for p in b)
    alone = dict(p for b in encoder.encode(samples, index.vectoriser) for p in b)
    for position, item in alone.items():
        np.testing.assert_allclose(
            with_one[position].vector, item.vector, rtol=1e-3, atol=1e-4 * item.norm
        )
        assert with_one[position].loss == pytest.approx(item.loss, rel=1e-5)


def test_work_is_bounded(built: Any) -> None:
    index, _ = built
    samples = index.training_samples(index.flat.ids)
    assert compared(index.lm, samples[:40]) == (0, 0)
    rows, queries = compared(index.lm, samples)
    assert module.LEAST <= rows <= len(samples) // 4
    assert 4 <= queries <= module.QUERIES[1]


def exact_share(index: InfluenceIndex, rows: list[Row]) -> float:
    """The share of the exact ten best rows of the index that are its ten stored best."""
    queries = index.samples(rows)
    ids, stored = index.scores(queries)
    exact = index.influence(queries, index.training_samples(ids))
    own = np.searchsorted(ids, [index.store.catalog.ids_of([row["id"]])[row["id"]] for row in rows])
    pairs = zip(exact, stored, own, strict=True)
    return float(np.mean([kept(np.delete(e, i), np.delete(s, i), 10) for e, s, i in pairs]))


def test_a_large_index_is_measured_whole(lm: LanguageModel, tmp_path: Path) -> None:
    rows = some(1300)
    vector = VectorConfig(dim=64, sketch_dim=512, fit_samples=50)
    index, report = InfluenceIndex.build(tmp_path / "i", rows, lm, format=KEYED, vector=vector)
    with index:
        found = report.fidelity
        assert found is not None and found == report.expected_fidelity == index.store.fidelity
        assert (found.queries, found.rows) == (4, 1299)
        more = index.add(some(1300, seed=1))
        assert more.expected_fidelity == found != more.fidelity
        assert more.fidelity is not None and more.fidelity.rows == 2599
    with InfluenceIndex.open(tmp_path / "i", model=lm) as again:
        assert again.store.fidelity == found
        queries = again.training_samples(again.flat.ids[100:124])
        measured = measure(again.session, queries)
        expected = exact_share(again, [sample.row for sample in queries])
        assert measured is not None
        assert measured.top_10 == pytest.approx(expected, abs=0.03)


def test_few_rows_are_not_measured_again() -> None:
    assert affordable(1239) == 0 and affordable(1240) == 4 and affordable(10**6) == 24


@pytest.mark.parametrize("metric", ["dot", "cosine", "per-token"])
@pytest.mark.parametrize("opponents", [False, True])
def test_candidates_are_those_that_may_be_among_the_best(
    built: Any, monkeypatch: pytest.MonkeyPatch, metric: str, opponents: bool
) -> None:
    index, _ = built
    queries = some(8, seed=5)
    asked: dict[str, Any] = {"metric": metric, "opponents": opponents}
    every = index.query(queries, 5, exact=True, candidates=len(index), **asked)
    sizes: list[int] = []
    real = asking._rerank

    def counted(reader: Any, samples: Any, pools: Any, *rest: Any) -> Any:
        sizes.extend(map(len, pools))
        return real(reader, samples, pools, *rest)

    monkeypatch.setattr(asking, "_rerank", counted)
    found = index.query(queries, 5, exact=True, **asked)
    assert len(found) == len(every)
    pairs = zip(found, every, strict=True)
    assert np.mean([a.id == b.id or a.score == pytest.approx(b.score) for a, b in pairs]) > 0.9
    assert min(sizes) >= 5 and max(sizes) < len(index)


def test_exact_scores_of_no_rows_are_none(built: Any) -> None:
    index, _ = built
    assert index.query(some(1, seed=5), 3, exact=True, where="id=nothing") == []
