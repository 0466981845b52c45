"""The removal study: a planted truth is found, finished runs are kept, chance is near zero."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.cli import assert_one_line, write
from helpers.cli import evaluate as run
from helpers.cli import evaluate_well as run_well
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig
from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.analysis.evaluate.removal import METHODS, RANDOM, SEED, _Baseline, removal
from forvalue_index.analysis.evaluate.subsets import KeptRuns, seed_noise
from forvalue_index.config import TrainConfig, VectorConfig
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.pipeline import passes
from forvalue_index.records import Row, Sample

TRAIN = TrainConfig(epochs=8, learning_rate=3e-3, batch_size=4)


@pytest.fixture()
def lm() -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture()
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each fine-tuning got, as it happened."""
    sizes: list[int] = []
    real = passes.fine_tune

    def counted(lm: LanguageModel, samples: list[Sample], *rest: Any) -> LanguageModel:
        sizes.append(len(samples))
        return real(lm, samples, *rest)

    monkeypatch.setattr(passes, "fine_tune", counted)
    yield sizes


def test_the_rows_that_taught_a_query_are_the_ones_whose_removal_hurts(
    lm: LanguageModel, rows: list[Row], tmp_path: Path, trained: list[int]
) -> None:
    # Every query is in the rows twice, with an answer that no other row has.
    facts = [
        {"prompt": f"{word} is", "response": f" {word[::-1]} {word}"} for word in ("zebra", "quilt")
    ]
    result = removal(
        lm,
        rows[:16] + facts + facts,
        facts,
        tmp_path,
        FormatConfig(),
        shares=(0.1,),
        methods=("stored cosine", "stored hybrid", "bm25"),
        draws=2,
        train=TRAIN,
        vector=VectorConfig(dim=64, sketch_dim=256),
    )
    assert result.removed == {"0.1": 2}
    assert result.loss_all < result.loss_before
    means = {name: found["0.1"].mean for name, found in result.methods.items()}
    assert means.keys() == {"stored cosine", "bm25", "stored hybrid", RANDOM, SEED}
    for name in ("stored hybrid", "bm25"):
        assert means[name] > 3 * max(abs(means[RANDOM]), abs(means[SEED]), result.noise["0.1"])
    best = result.best["0.1"]
    assert means[best] == max(means[name] for name in ("stored cosine", "bm25", "stored hybrid"))
    assert (result.less[best]["0.1"].mean, result.less[best]["0.1"].sd) == (0, 0)
    assert result.less["bm25"]["0.1"].mean == pytest.approx(means[best] - means["bm25"])
    assert trained[0] == 20
    assert set(trained[1:]) == {18}


def test_a_finished_run_is_not_made_again(
    lm: LanguageModel, rows: list[Row], tmp_path: Path, trained: list[int]
) -> None:
    few = TrainConfig(epochs=1, batch_size=4)
    with empty_index(lm, FormatConfig()) as base:
        samples = base.samples(rows[:12])

        def losses(removed: list[int], train: TrainConfig = few) -> np.ndarray[Any, Any]:
            runs = KeptRuns(base, samples[:9], samples[9:], tmp_path)
            return runs.without(np.array(removed), train)

        first = losses([3, 1])
        assert trained == [7]
        np.testing.assert_array_equal(losses([1, 3]), first)  # the same rows in another order
        assert trained == [7]
        for removed, train in (([1], few), ([1, 4], few), ([1, 3], replace(few, seed=1))):
            assert not np.allclose(losses(removed, train), first)
        assert trained == [7, 8, 7, 7]
        tuned = base.passes.fine_tuned([samples[i] for i in (0, 2, 4, 5, 6, 7, 8)], few)
        np.testing.assert_allclose(base.passes.losses(samples[9:], tuned), first, rtol=1e-6)


def test_chance_is_compared_with_other_draws() -> None:
    # Draw 1 is 3 higher than draw 0 for every query; a second seed adds 0.5.
    first = np.array([[1.0, 1, 1, 1], [4, 4, 4, 4]])
    baseline = _Baseline(np.array([first, first + 0.5]))
    np.testing.assert_allclose(baseline.mean, 2.75)
    found = baseline.of_chance()
    assert found[RANDOM].tolist() == [-3, 3, -3, 3]
    assert found[SEED].tolist() == [0.5] * 4
    assert seed_noise(baseline.losses) == pytest.approx(0.125**0.5)
    assert seed_noise(baseline.losses[:1]) is None


def test_what_cannot_be_measured(lm: LanguageModel, rows: list[Row], tmp_path: Path) -> None:
    for settings, message in (
        ({"shares": (0.01,)}, "12 rows are too few to remove 0.01"),
        ({"shares": (1.5,)}, "share is 1.5"),
        ({"methods": ("magic",)}, "no method 'magic'; there are: stored dot"),
        ({"methods": ("exact dot",)}, "no method 'exact dot'"),
        ({"draws": 1}, "use 2 or more"),
    ):
        with pytest.raises(InputError, match=message):
            removal(lm, rows[:12], rows[12:14], tmp_path, FormatConfig(), **settings)
    assert not list(tmp_path.iterdir()), "nothing was trained"


def test_the_command(rows: list[Row], model_dir: Path, tmp_path: Path, trained: list[int]) -> None:
    train, queries = (
        write(tmp_path / "a.jsonl", rows[:12]),
        write(tmp_path / "b.jsonl", rows[12:14]),
    )
    arguments = ("removal", "--model", model_dir, "--data", train, "--queries", queries)
    arguments += ("--work", tmp_path / "runs", "--epochs", 1, "--share", 0.1, "--draws", 2)
    found = json.loads(run_well(*arguments, "--exact", "--json"))
    assert list(found["methods"])[-2:] == [RANDOM, SEED]
    assert set(METHODS) | {"exact cosine"} < set(found["methods"])
    assert set(found["methods"]["bm25"]["0.1"]) == {"mean", "sd", "se", "n"}
    runs = len(trained)
    out = run_well(*arguments, "--method", "bm25", "--method", "stored hybrid")
    assert len(trained) == runs, "nothing is trained twice"
    assert "0.1 = 1 rows" in out
    assert "stored hybrid" in out and "embedding" not in out
    assert "12 rows, 2 queries" in out
    assert_one_line(run(*arguments, "--method", "magic"), "no method 'magic'")
    assert run(*arguments, "--draws", 1).exit_code == 2
