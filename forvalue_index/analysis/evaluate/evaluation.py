"""The studies of an index that exists, as methods: what `InfluenceIndex.evaluate` is.

`mislabel.py`, `lds.py` and `removal.py` study a model and a data set, and make their indexes
themselves.
"""

from __future__ import annotations

from forvalue_index.analysis.evaluate.fidelity import FidelityResult, fidelity
from forvalue_index.analysis.evaluate.recall import RecallResult, recall
from forvalue_index.analysis.evaluate.selection import SelectionResult, evaluate_selection
from forvalue_index.config import FormatConfig, TrainConfig
from forvalue_index.data.sources import Data
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress


class Evaluation:
    """Measures how good an index is, against what is known."""

    def __init__(self, index: InfluenceIndex) -> None:
        self._index = index

    def fidelity(
        self,
        data: Data,
        *,
        sample: int | None = None,
        seed: int = 0,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> FidelityResult:
        """Returns how the scores of stored vectors compare with the exact form of the recipe.

        Args:
            data: queries that are not in the index.
            sample: number of training samples to compare with, drawn at random; default: all.
            seed: of the draw.
            format: how queries become tokens, if not as the index's rows do.
            progress: called while the training samples are run forward again.

        Raises:
            InputError: there is no query, or fewer than two training samples.
            RowError: a query lacks a field or holds nothing to score.
        """
        return fidelity(
            self._index, data, sample=sample, seed=seed, format=format, progress=progress
        )

    def recall(
        self,
        data: Data,
        gold_field: str,
        *,
        exact: bool = False,
        gradient: bool = False,
        seed: int = 0,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> RecallResult:
        """Returns how well influence, and other methods, find the sources of queries.

        The sources of a query are the training samples with the same value of `gold_field`.

        Args:
            data: queries with the field.
            gold_field: field of the queries and of the training rows.
            exact: also score by the exact forms of the recipe and of the last layer's gradients,
                which runs all training samples forward again.
            gradient: also score by the gradients of the whole model, a backward pass per sample.
            seed: of the random baseline.
            format: how queries become tokens, if not as the index's rows do.
            progress: called while training samples are run forward again.

        Raises:
            DependencyError: the library for BM25 is not installed.
            InputError: there is no query, or all or none of the training samples are its sources.
            RowError: a query lacks a field or holds nothing to score.
        """
        return recall(
            self._index,
            data,
            gold_field,
            exact=exact,
            gradient=gradient,
            seed=seed,
            format=format,
            progress=progress,
        )

    def identify(
        self,
        data: Data,
        class_field: str,
        *,
        exact: bool = False,
        gradient: bool = False,
        seed: int = 0,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> RecallResult:
        """Returns how well influence tells which class of the training data a query belongs to.

        This is `recall` with the class as the field: `auc` and `recall` are the figures to read
        (For-Value, arXiv 2508.10180). Arguments and errors are those of `recall`.
        """
        return self.recall(
            data,
            class_field,
            exact=exact,
            gradient=gradient,
            seed=seed,
            format=format,
            progress=progress,
        )

    def select(
        self,
        data: Data,
        budget: int,
        *,
        seeds: int = 3,
        train: TrainConfig | None = None,
        exact: bool = False,
        gradient: bool = False,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> SelectionResult:
        """Returns the targets' loss after fine-tuning on the selections of all methods.

        Every fine-tuning starts from the index's model.

        Args:
            data: the targets.
            budget: how many rows are chosen.
            seeds: how often the targets are split anew and the rows trained on in another order.
            train: how models are fine-tuned, except for the seed.
            exact: also choose by the exact forms, which runs all rows forward again.
            gradient: also by the gradients of the whole model, a backward pass per sample.
            format: how targets become tokens, if not as the index's rows do.
            progress: called as the work goes on.

        Raises:
            DependencyError: the library for BM25 is not installed.
            InputError: the budget is not below the number of rows, or there is only one target.
            RowError: a target lacks a field or holds nothing to score.
        """
        return evaluate_selection(
            self._index,
            data,
            budget,
            seeds=seeds,
            train=train,
            exact=exact,
            gradient=gradient,
            format=format,
            progress=progress,
        )
