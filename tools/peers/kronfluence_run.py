"""kronfluence: fits its factors to training rows, or scores the rows for queries with them.

    python -m peers.kronfluence_run MODEL TRAIN INDEX --max-length 300
    python -m peers.kronfluence_run MODEL TRAIN INDEX --max-length 300 --queries FILE --scores OUT

EKFAC with kronfluence's own defaults: true Fisher (labels drawn from the model), float32,
eigenvectors in float64. The damping is a tenth of the mean eigenvalue, as in its example with
Llama. Loss and measurement are the sum over the tokens of the whole text. INDEX gets the factors,
whose size does not depend on the number of rows; no gradient of a row is kept. The gradients of all
queries are held in memory (4 bytes a parameter of the modules each), so that those of the training
rows are computed once, and not again for every batch of queries.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from peers.texts import BATCH, IGNORED, Batch, arguments, collate, linears, load, read
from torch import Tensor, nn

NAME = "ekfac"


class WholeText(Task):  # type: ignore[misc]
    """The cross entropy of all tokens of a text but the first."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        """Returns the sum over a batch; with `sample`, for labels that the model draws."""
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = outputs.logits[:, :-1].flatten(0, 1)  # [b (t - 1), v]
        labels = batch["labels"][:, 1:].flatten()
        if sample:
            drawn = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
            labels = drawn.where(labels != IGNORED, IGNORED)
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        """Returns what the influence is on: the loss of the queries."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """Returns the names of the modules."""
        return self._modules

    def get_attention_mask(self, batch: Batch) -> Tensor:
        """Returns [b, t]: 0 where a text is padded."""
        return batch["attention_mask"]


def main() -> None:
    """Leaves the factors in the folder, or writes the scores."""
    given = arguments(__doc__)
    torch.manual_seed(0)
    model = load(given.model)
    train = read(given.train, given.model, given.max_length)
    task = WholeText(linears(model))
    model = prepare_model(model, task)
    analyzer = Analyzer(NAME, model, task, cpu=True, output_dir=str(given.index))
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=collate))
    if given.queries is None:
        analyzer.fit_all_factors(
            NAME,
            train,
            per_device_batch_size=BATCH,
            factor_args=FactorArguments(NAME),
            overwrite_output_dir=True,
        )
        return
    queries = read(given.queries, given.model, given.max_length)
    settings = ScoreArguments(
        damping_factor=None, query_gradient_accumulation_steps=-(-len(queries) // BATCH)
    )
    analyzer.compute_pairwise_scores(
        NAME,
        NAME,
        queries,
        train,
        per_device_query_batch_size=BATCH,
        per_device_train_batch_size=BATCH,
        score_args=settings,
        overwrite_output_dir=True,
    )
    np.save(given.scores, analyzer.load_pairwise_scores(NAME)["all_modules"].numpy())


if __name__ == "__main__":
    main()
