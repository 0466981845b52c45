"""Losses of targets after fine-tuning on a part of the rows; every run is kept.

The linear datamodeling score compares predictions with the losses of random subsets (arXiv
2303.14186), the removal study those without the rows that a method ranks first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import TrainConfig
from forvalue_index.data.writers import complete
from forvalue_index.errors import InputError
from forvalue_index.records import Progress, Sample

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex, LanguageModel


@dataclass(frozen=True, slots=True)
class SubsetConfig:
    """Which subsets are trained on, and how."""

    share: float = 0.5  # of the rows, in every subset
    seed: int = 0  # of the draws
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}, but must be above 0 and below 1")


class KeptRuns:
    """Fine-tunings of one model on some of the same rows, kept in a folder as they finish.

    There is a file for each run. Its name has a hash of everything that the run depends on: runs
    with other settings can share the folder, and an interrupted study continues after the last run
    that finished.
    """

    def __init__(
        self,
        index: InfluenceIndex,
        samples: Sequence[Sample],
        targets: Sequence[Sample],
        work: Path,
    ) -> None:
        self._passes, self._samples, self._targets = index.passes, samples, targets
        self._work, self.rows = work, len(samples)
        self._rows = _hash([index.lm.fingerprint()["weights"], _contents(samples)])
        work.mkdir(parents=True, exist_ok=True)

    def full(self, train: TrainConfig, progress: Progress | None = None) -> LanguageModel:
        """Returns the model fine-tuned on all rows; its weights are kept, too."""
        path = self._work / f"full-{_hash([self._rows, asdict(train)])}.safetensors"
        return self._passes.fine_tuned(self._samples, train, progress, keep=path)

    def losses(
        self, name: str, members: NDArray[np.intp], train: TrainConfig
    ) -> NDArray[np.float64]:
        """Returns the targets' losses after training on the rows at `members`, [t].

        `name` is the name of the run's file, without its ending.
        """
        path = self._work / f"{name}.json"
        if path.exists():
            return np.array(json.loads(path.read_text()))
        tuned = self._passes.fine_tuned([self._samples[i] for i in members], train)
        losses = self._passes.losses(self._targets, tuned)
        with complete(path, text=True) as file:
            json.dump(losses.tolist(), file)
        return losses

    def without(self, removed: NDArray[np.intp], train: TrainConfig) -> NDArray[np.float64]:
        """Returns the targets' losses after training on all rows but those at `removed`, [t]."""
        name = f"removal-{self.key([asdict(train), np.sort(removed).tolist()])}"
        return self.losses(name, np.delete(np.arange(len(self._samples)), removed), train)

    def key(self, settings: object) -> str:
        """Returns a hash of the model, the rows, the targets and `settings`."""
        return _hash([self._rows, _contents(self._targets), settings])


class SubsetRuns:
    """Fine-tunings on random subsets of the rows, kept as `KeptRuns` does."""

    def __init__(
        self,
        index: InfluenceIndex,
        samples: Sequence[Sample],
        targets: Sequence[Sample],
        config: SubsetConfig,
        work: Path,
    ) -> None:
        if round(config.share * len(samples)) in (0, len(samples)):
            raise InputError(
                f"{len(samples)} rows are too few to take {config.share:g} of them: give more, or "
                "another share"
            )
        self._runs = KeptRuns(index, samples, targets, work)
        self._config, self._rows, self._targets = config, len(samples), len(targets)

    def members(self, number: int) -> NDArray[np.intp]:
        """Returns the positions of the rows of one subset, ascending."""
        n = self._rows
        rng = np.random.default_rng([self._config.seed, number])
        return np.sort(rng.choice(n, round(self._config.share * n), replace=False))

    def indicator(self, count: int) -> NDArray[np.float64]:
        """Returns which rows are in which of the first subsets, [count, n], 1 or 0."""
        result = np.zeros((count, self._rows))
        for number, row in enumerate(result):
            row[self.members(number)] = 1
        return result

    def losses(
        self, count: int, progress: Progress | None = None, *, seeds: int = 1
    ) -> NDArray[np.float64]:
        """Returns the targets' losses after training on each of the first subsets.

        Every subset is trained on with each of `seeds` seeds: [seeds, count, t].
        """
        result = np.empty((seeds, count, self._targets))
        for done in range(seeds * count):
            number, seed = divmod(done, seeds)
            train = replace(self._config.train, seed=self._config.train.seed + seed)
            key = self._runs.key(asdict(replace(self._config, train=train)))
            name = f"subset-{key}-{number:04d}"
            result[seed, number] = self._runs.losses(name, self.members(number), train)
            if progress is not None:
                progress("subsets", done + 1, seeds * count, 0)
        return result

    def full(self, progress: Progress | None = None) -> LanguageModel:
        """Returns the model fine-tuned on all rows; its weights are kept, too."""
        return self._runs.full(self._config.train, progress)


def seed_noise(losses: NDArray[np.float64]) -> float | None:
    """Returns the standard deviation of a loss over seeds of the same rows; None of one seed.

    `losses` is [seeds, runs, t]; the variance is the mean over runs and targets.
    """
    return float(np.sqrt(losses.var(0, ddof=1).mean())) if len(losses) > 1 else None


def _contents(samples: Sequence[Sample]) -> list[str]:
    """Returns a hash of each sample as the model reads it."""
    return [
        hashlib.sha256(
            sample.input_ids.tobytes()
            + sample.scored.tobytes()
            + (b"" if sample.rejected is None else b"%d" % sample.rejected)
        ).hexdigest()
        for sample in samples
    ]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
