"""Losses of targets after fine-tuning on random subsets of the rows; every run is kept.

The linear datamodeling score compares predictions with these losses (arXiv 2303.14186).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import TrainConfig
from forvalue_index.data.writers import complete
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex, LanguageModel
from forvalue_index.records import Progress, Sample


@dataclass(frozen=True, slots=True)
class SubsetConfig:
    """Which subsets are trained on, and how."""

    share: float = 0.5  # of the rows, in every subset
    seed: int = 0  # of the draws
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}, but must be between 0 and 1")


class SubsetRuns:
    """Fine-tunings of one model on subsets of the same rows, kept in a folder as they finish.

    There is a file for each run. Its name has a hash of everything that the run depends on: runs
    with other settings can share the folder, and an interrupted study continues after the last run
    that finished.
    """

    def __init__(
        self,
        index: InfluenceIndex,
        samples: Sequence[Sample],
        targets: Sequence[Sample],
        config: SubsetConfig,
        work: Path,
    ) -> None:
        if round(config.share * len(samples)) in (0, len(samples)):
            raise InputError(f"{len(samples)} rows are too few to take {config.share:g} of them")
        self._passes, self._samples, self._targets = index.passes, samples, targets
        self._config = config
        self._work = work
        self._rows = _hash([index.lm.fingerprint()["weights"], _contents(samples)])
        self._key = _hash([self._rows, _contents(targets), asdict(config)])
        work.mkdir(parents=True, exist_ok=True)

    def members(self, number: int) -> NDArray[np.intp]:
        """Returns the positions of the rows of one subset, ascending."""
        n = len(self._samples)
        rng = np.random.default_rng([self._config.seed, number])
        return np.sort(rng.choice(n, round(self._config.share * n), replace=False))

    def indicator(self, count: int) -> NDArray[np.float64]:
        """Returns which rows are in which of the first subsets, [count, n], 1 or 0."""
        result = np.zeros((count, len(self._samples)))
        for number, row in enumerate(result):
            row[self.members(number)] = 1
        return result

    def losses(self, count: int, progress: Progress | None = None) -> NDArray[np.float64]:
        """Returns the targets' losses after training on each of the first subsets, [count, t]."""
        result = np.empty((count, len(self._targets)))
        for number, row in enumerate(result):
            row[:] = self._run(number)
            if progress is not None:
                progress("subsets", number + 1, count, 0)
        return result

    def full(self, progress: Progress | None = None) -> LanguageModel:
        """Returns the model fine-tuned on all rows; its weights are kept, too."""
        train = self._config.train
        path = self._work / f"full-{_hash([self._rows, asdict(train)])}.safetensors"
        return self._passes.fine_tuned(self._samples, train, progress, keep=path)

    def _run(self, number: int) -> NDArray[np.float64]:
        path = self._work / f"subset-{self._key}-{number:04d}.json"
        if path.exists():
            return np.array(json.loads(path.read_text()))
        chosen = [self._samples[i] for i in self.members(number)]
        tuned = self._passes.fine_tuned(chosen, self._config.train)
        losses = self._passes.losses(self._targets, tuned)
        with complete(path, text=True) as file:
            json.dump(losses.tolist(), file)
        return losses


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
