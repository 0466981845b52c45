"""The linear datamodeling score: what is measured is kept, and a planted truth is predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.analysis.evaluate.lds import lds, lds_of
from forvalue_index.analysis.evaluate.methods import empty_index
from forvalue_index.analysis.evaluate.subsets import SubsetConfig, SubsetRuns, seed_noise
from forvalue_index.config import TrainConfig, VectorConfig
from forvalue_index.errors import InputError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.pipeline import passes
from forvalue_index.records import Row, Sample

CONFIG = SubsetConfig(train=TrainConfig(epochs=2, learning_rate=2e-3, batch_size=4))


@pytest.fixture()
def lm() -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture()
def base(lm: LanguageModel) -> Iterator[InfluenceIndex]:
    with empty_index(lm, FormatConfig()) as index:
        yield index


@pytest.fixture()
def samples(base: InfluenceIndex, rows: list[Row]) -> list[Sample]:
    return base.samples(rows)


@pytest.fixture()
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each fine-tuning got, as it happened."""
    sizes: list[int] = []
    real = passes.fine_tune

    def counted(lm: LanguageModel, samples: list[Sample], *rest: Any) -> LanguageModel:
        sizes.append(len(samples))
        return real(lm, samples, *rest)

    monkeypatch.setattr(passes, "fine_tune", counted)
    return sizes


def runs(base: InfluenceIndex, samples: list[Sample], work: Path, **changes: Any) -> SubsetRuns:
    return SubsetRuns(base, samples[:12], samples[12:16], replace(CONFIG, **changes), work)


def test_a_finished_run_is_not_made_again(
    base: InfluenceIndex, samples: list[Sample], tmp_path: Path, trained: list[int]
) -> None:
    two = runs(base, samples, tmp_path).losses(2)[0]
    assert trained == [6, 6]
    three = runs(base, samples, tmp_path).losses(3)[0]
    assert trained == [6, 6, 6]
    np.testing.assert_array_equal(three[:2], two)
    assert not np.allclose(three[0], three[1])
    (tmp_path / "subset-cut.part").write_text("[1.0")  # as a kill would leave it
    assert runs(base, samples, tmp_path).losses(3).shape == (1, 3, 4)
    assert len(trained) == 3


def test_a_subset_is_trained_on_with_several_seeds(
    base: InfluenceIndex, samples: list[Sample], tmp_path: Path, trained: list[int]
) -> None:
    one = runs(base, samples, tmp_path).losses(2)
    both = runs(base, samples, tmp_path).losses(2, seeds=2)
    assert len(trained) == 4, "the first seed is not trained again"
    np.testing.assert_array_equal(both[0], one[0])
    other = runs(base, samples, tmp_path, train=replace(CONFIG.train, seed=1)).losses(2)
    np.testing.assert_array_equal(both[1], other[0])
    noise = seed_noise(both)
    assert noise is not None
    assert 0 < noise < np.abs(both[0, 0] - both[0, 1]).max()


def test_runs_of_other_settings_are_other_runs(
    base: InfluenceIndex, samples: list[Sample], tmp_path: Path, trained: list[int]
) -> None:
    runs(base, samples, tmp_path).losses(1)
    faster = replace(CONFIG.train, learning_rate=1e-2)
    for changes in ({"seed": 1}, {"share": 0.25}, {"train": faster}):
        runs(base, samples, tmp_path, **changes).losses(1)
    SubsetRuns(base, samples[:12], samples[16:20], CONFIG, tmp_path).losses(1)
    SubsetRuns(base, samples[1:13], samples[12:16], CONFIG, tmp_path).losses(1)
    other = wrap_model(tiny_model("llama", seed=1), tiny_tokenizer())
    with empty_index(other, FormatConfig()) as index:
        runs(index, samples, tmp_path).losses(1)
    assert trained == [6, 6, 3, 6, 6, 6, 6]


def test_the_model_of_all_rows_is_kept(
    base: InfluenceIndex, samples: list[Sample], tmp_path: Path, trained: list[int]
) -> None:
    first = Encoder(runs(base, samples, tmp_path).full()).losses(samples)
    again = Encoder(runs(base, samples, tmp_path).full()).losses(samples)
    assert trained == [12]
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, base.passes.losses(samples))


def test_subsets_are_shares_and_known_from_the_seed(
    base: InfluenceIndex, samples: list[Sample], tmp_path: Path
) -> None:
    chosen = runs(base, samples, tmp_path).indicator(40)
    assert (chosen.sum(1) == 6).all()
    assert len({tuple(row) for row in chosen}) > 30
    assert (chosen.mean(0) > 0.2).all()
    np.testing.assert_array_equal(chosen[:5], runs(base, samples, tmp_path).indicator(5))
    for share in (0.01, 0.99):
        with pytest.raises(InputError, match="12 rows are too few"):
            runs(base, samples, tmp_path, share=share)
    with pytest.raises(InputError, match="share is 1"):
        replace(CONFIG, share=1)


def test_scores_of_predictions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 5))
    perfect = lds_of(np.exp(truth), truth)  # the order is what counts
    assert (perfect.mean, perfect.sd, perfect.se, perfect.n) == (pytest.approx(1), 0, 0, 5)
    assert lds_of(-truth, truth).mean == pytest.approx(-1)
    assert lds_of(np.ones((20, 5)), truth).mean == 0
    noisy = lds_of(truth + rng.normal(size=truth.shape), truth)
    assert noisy.mean is not None
    assert noisy.se is not None
    assert 0.4 < noisy.mean < 0.9
    # Five independent targets, each correlation with an error of about (1 - r^2) / sqrt(20).
    assert 0.3 < noisy.se / ((1 - noisy.mean**2) / (5 * 20) ** 0.5) < 2


def test_rows_that_stand_among_the_targets_are_predicted(
    lm: LanguageModel, rows: list[Row], tmp_path: Path
) -> None:
    train = [row | {"response": f" {row['response'].strip()[::-1]} end"} for row in rows[:16]]
    config = SubsetConfig(train=TrainConfig(epochs=6, learning_rate=3e-3, batch_size=4))
    result = lds(
        lm,
        train,
        train[:8],
        tmp_path,
        FormatConfig(),
        subsets=12,
        config=config,
        vector=VectorConfig(dim=64, sketch_dim=256),
        recipes=("raw",),
        gradient=True,
    )
    assert (result.rows, result.targets, result.subsets) == (16, 8, 12)
    assert result.loss_all < result.loss_subsets < result.loss_before
    means = {name: found.lds.mean for name, found in result.methods.items()}
    for name in ("raw, exact cosine", "raw, stored cosine", "full gradient", "bm25"):
        assert means[name] > 0.4, means
    assert abs(means["random"]) < 0.4


def test_the_command(
    rows: list[Row],
    model_dir: Path,
    tmp_path: Path,
    trained: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from helpers.cli import evaluate as run
    from helpers.cli import evaluate_well as run_well
    from helpers.cli import write

    train, targets = (
        write(tmp_path / "a.jsonl", rows[:12]),
        write(tmp_path / "b.jsonl", rows[12:15]),
    )
    work, picture = tmp_path / "runs", tmp_path / "lds.png"
    arguments = ("lds", "--model", model_dir, "--data", train, "--targets", targets)
    arguments += ("--work", work, "--subsets", 3, "--epochs", 1, "--recipe", "balanced")
    result = json.loads(run_well(*arguments, "--json"))
    assert trained == [12, 6, 6, 6]
    assert set(result["methods"]["balanced, stored dot"]["lds"]) == {"mean", "sd", "se", "n"}
    assert list(result["methods"])[7:] == ["bm25", "embedding", "loss", "length", "random"]
    out = run_well(*arguments, "--plot", picture)
    assert len(trained) == 4, "nothing is trained twice"
    assert "balanced, exact cosine" in out
    assert "3 subsets that keep 50% of 12 rows" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "another seed" not in out
    out = run_well(*arguments, "--trainings", 2)
    assert len(trained) == 7
    assert "2 trainings each" in out and "another seed alone moves it by 0." in out
    assert run(*arguments, "--subsets", 2).exit_code == 2
