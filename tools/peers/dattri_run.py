"""dattri: projects the gradients of training rows and, where there are queries, scores the rows.

    python -m peers.dattri_run MODEL TRAIN INDEX --max-length 300
    python -m peers.dattri_run MODEL TRAIN INDEX --max-length 300 --queries FILE --scores OUT

LoGra with 16 x 16 numbers a module, as many as bergson keeps, and an empirical Fisher matrix damped
by 1: with the .01 of dattri's example with GPT-2 it finds fewer rows here; float32. The loss is the
mean over the tokens of the whole text. INDEX stays empty: without a GPU, dattri's cache lives as
long as its process (to keep it on disk takes pinned memory, and in another process `attribute`
would fill it anew even then), so that a process that is asked fills it again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dattri.algorithm.logra import LoGraAttributor
from dattri.task import AttributionTask
from peers.texts import BATCH, IGNORED, Batch, Sample, arguments, collate, linears, load, read
from torch import Tensor, nn
from torch.utils.data import DataLoader


def loss(model: nn.Module, batch: Batch, device: str) -> Tensor:
    """Returns the mean over texts of the mean over their tokens.

    The mean over all tokens, which transformers gives, would weigh a text by its batch's length.
    """
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    labels = batch["labels"][:, 1:]  # [b, t - 1]
    logits = outputs.logits[:, :-1].transpose(1, 2)  # [b, v, t - 1]
    each = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return (each.sum(1) / (labels != IGNORED).sum(1)).mean()


def main() -> None:
    """Caches the gradients; writes the scores where there are queries."""
    given = arguments(__doc__)
    # Compiled, it takes a sixth less for each row, and from 4 to 14 seconds more to start.
    torch.compiler.set_stance("force_eager")
    model = load(given.model)

    def batches(path: Path) -> DataLoader[Sample]:
        samples = read(path, given.model, given.max_length)
        return DataLoader(samples, BATCH, collate_fn=collate)  # type: ignore[arg-type]

    train = batches(given.train)
    task = AttributionTask(loss, model, {}, checkpoints_load_func=lambda model, _: model)
    with tempfile.TemporaryDirectory() as folder:  # gets the sizes of the batches
        attributor = LoGraAttributor(
            task, linears(model), damping=1.0, proj_dim=16 * 16, cache_dir=folder
        )
        attributor.cache(train)
        if given.queries is not None:
            scores = attributor.attribute(train, batches(given.queries))  # [n, q]
            np.save(given.scores, scores.T.numpy())


if __name__ == "__main__":
    main()
