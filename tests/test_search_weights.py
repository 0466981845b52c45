"""Ranks with a weight for each sample, such as cosine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.vectors import DIM, exact, fp16, random, write

from forvalue_index.errors import InputError
from forvalue_index.search.flat import FlatSearch


def test_weights_change_the_rank_exactly(tmp_path: Path) -> None:
    """Whole numbers and powers of two, so that numpy has the same scores and equal ones occur."""
    rng = np.random.default_rng(0)
    n = 200
    vectors = rng.integers(-2, 3, (n, 4)).astype(np.float32)
    ids = np.sort(rng.choice(1000, n, replace=False))
    queries = rng.integers(-2, 3, (7, 4)).astype(np.float32)
    parts = [(ids[i::5], vectors[i::5]) for i in range(5)]
    removed = ids[::7]
    live = ~np.isin(ids, removed)
    flat = FlatSearch(tmp_path, write(tmp_path, parts), 4, 16, removed)
    weights = 2.0 ** rng.integers(-3, 4, live.sum())
    weighted = vectors[live] * weights[:, None]
    np.testing.assert_array_equal(flat.scores(queries, weights=weights)[1], queries @ weighted.T)
    allowed = rng.choice(1000, 300, replace=False)
    for restriction in (None, allowed):
        kept = np.isin(ids[live], ids if restriction is None else restriction)
        for k in (1, 10, n + 1):
            for opponents, sign in ((False, 1), (True, -1)):
                scores, found = flat.search(
                    queries, k, opponents=opponents, allowed=restriction, weights=weights
                )
                want_scores, want = exact(sign * queries, weighted[kept], ids[live][kept], k)
                np.testing.assert_array_equal(found, want)
                np.testing.assert_array_equal(scores, sign * want_scores)
    # It could fail: without weights the order is another one.
    assert (flat.search(queries, 10)[1] != flat.search(queries, 10, weights=weights)[1]).any()


def test_cosines_are_cosines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries, ids = random(300), random(20, seed=1), np.arange(300)
    vectors *= np.geomspace(0.1, 10, 300, dtype=np.float32)[:, None]
    flat = FlatSearch(
        tmp_path, write(tmp_path, [(ids[:99], vectors[:99]), (ids[99:], vectors[99:])]), DIM, 16
    )
    lengths = np.linalg.norm(fp16(vectors), axis=1)
    scores, found = flat.search(queries, 12, weights=1 / lengths)
    cosines = queries @ (fp16(vectors) / lengths[:, None]).T
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :12])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, found, 1), rtol=1e-4)
    # To the bit what `scores` and `scores_of` say, also when few are compared at a time.
    every = flat.scores(queries, weights=1 / lengths)[1]
    np.testing.assert_array_equal(np.take_along_axis(every, found, 1), scores)
    monkeypatch.setattr("forvalue_index.search.flat._COMPARED", 24 * DIM)
    again = flat.search(queries, 12, weights=1 / lengths)
    np.testing.assert_array_equal(again[0], scores)
    np.testing.assert_array_equal(again[1], found)
    np.testing.assert_array_equal(flat.scores_of(queries, found, weights=1 / lengths), scores)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, 1e-50, 1e50])
def test_weights_that_are_none_are_refused(tmp_path: Path, bad: float) -> None:
    flat = FlatSearch(tmp_path, write(tmp_path, [(range(5), random(5))]), DIM, 16, removed=[0])
    weights = np.array([1, 2, bad, 1])
    for method in (
        lambda w: flat.search(random(1), 2, weights=w),
        lambda w: flat.scores(random(1), weights=w),
        lambda w: flat.scores_of(random(1), np.array([[1]]), weights=w),
    ):
        with (
            np.errstate(over="ignore"),
            pytest.raises(InputError, match=r"weight of sample 3 is .*positive and finite"),
        ):
            method(weights)
        with pytest.raises(InputError, match=r"\(5,\) weights for 4 samples"):
            method(np.ones(5))
