"""The metrics against plain counting."""

from __future__ import annotations

import numpy as np
import pytest

from forvalue_index.analysis.evaluate.metrics import auc, recall


def test_auc_counts_pairs() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 8, 40).astype(float)  # with ties
    positive = generator.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auc(positive, positive) == 1
    assert auc(-positive.astype(float), positive) == 0


def test_auc_needs_both_kinds() -> None:
    with pytest.raises(ValueError, match="0 positive, 2 negative"):
        auc([1, 2], [False, False])


def test_recall_looks_at_as_many_as_there_are() -> None:
    assert recall([3, 2, 1, 0], [True, False, True, False]) == 0.5
    assert recall([3, 2, 1, 0], [True, True, False, False]) == 1
