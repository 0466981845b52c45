"""What training on random parts of a data set does to targets, measured; every run is kept.

The truth that the linear datamodeling score compares predictions with (arXiv 2303.14186).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from forvalue_index.analysis.evaluate.training import TrainConfig, fine_tune, sample_losses
from forvalue_index.data.writers import complete
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.pipeline.add import Progress
from forvalue_index.records import Sample


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
    """Fine-tunings of one model on subsets of one set of rows, kept in a folder as they are done.

    A file for each run, under a name that holds a hash of all that it depends on: runs of other
    settings may stand beside it, and an interrupted study goes on after the last whole run.
    """

    def __init__(
        self,
        lm: LanguageModel,
        samples: Sequence[Sample],
        targets: Sequence[Sample],
        config: SubsetConfig,
        work: Path,
    ) -> None:
        if round(config.share * len(samples)) in (0, len(samples)):
            raise InputError(f"{len(samples)} rows are too few to take {config.share:g} of them")
        self._lm, self._samples, self._targets = lm, samples, targets
        self._config = config
        self._work = work
        self._rows = _hash([lm.fingerprint()["weights"], _contents(samples)])
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
        if not path.exists():
            tuned = fine_tune(self._lm, self._samples, train, progress)
            with complete(path) as file:
                file.write(save({name: value.cpu() for name, value in _weights(tuned).items()}))
            return tuned
        return with_weights(self._lm, load_file(path))

    def _run(self, number: int) -> NDArray[np.float64]:
        path = self._work / f"subset-{self._key}-{number:04d}.json"
        if path.exists():
            return np.array(json.loads(path.read_text()))
        chosen = [self._samples[i] for i in self.members(number)]
        losses = sample_losses(fine_tune(self._lm, chosen, self._config.train), self._targets)
        with complete(path, text=True) as file:
            json.dump(losses.tolist(), file)
        return losses


def with_weights(lm: LanguageModel, weights: dict[str, torch.Tensor]) -> LanguageModel:
    """Returns a copy of a model, in float32, with other weights."""
    with model_lock():
        result = copy.deepcopy(lm)
    result.model.float()
    for name, value in _weights(result).items():
        value.copy_(weights[name])
    return result


def _weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in lm.model.named_parameters()}


def _contents(samples: Sequence[Sample]) -> list[str]:
    """Returns what the model sees of each sample, hashed."""
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
