"""`score`, `audit`, `select` and `evaluate`: the methods of `InfluenceIndex` that are analysis.

They are apart from `index.py` because analysis stands on the index: it is imported when a method is
called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.metric import Metric
from forvalue_index.records import Progress, Sample

if TYPE_CHECKING:
    from forvalue_index.analysis.audit.scores import Audit
    from forvalue_index.analysis.evaluate.evaluation import Evaluation
    from forvalue_index.analysis.score import Score
    from forvalue_index.analysis.select import Selection
    from forvalue_index.index import InfluenceIndex


class AnalysisVerbs:
    """What an index answers beyond hits. Only `InfluenceIndex` derives from it."""

    @property
    def _index(self) -> InfluenceIndex:
        return cast("InfluenceIndex", self)

    def score(
        self,
        targets: Data | list[Sample],
        *,
        k: int = 5,
        combine: str = "mean",
        metric: str | Metric = "dot",
        target_group: str | None = None,
        group_by: str | None = None,
        where: str | Iterable[str] = (),
        exact: bool = False,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> Score:
        """Returns the value of every training sample: its mean (or highest) score for targets.

        Args:
            targets: what the model should do well, in the form of the index's rows.
            k: how many of the best and of the worst samples are listed.
            combine: "mean" or "max" over the targets, or "each": the highest share of a target's
                best score.
            metric: of the scores, as in `query`.
            target_group: field of the targets: adds a value for each group of targets.
            group_by: field of the training rows: adds what each group of them is worth.
            where: only training samples that meet these conditions.
            exact: run targets and listed samples forward again, for their exact values.
            format: how targets become tokens, if not as the index's rows do.
            progress: called as the work goes on.

        Raises:
            InputError: there is no target, a field is missing, or a condition cannot be read.
            RowError: a target lacks a field or holds nothing to score.
        """
        from forvalue_index.analysis.score import score

        return score(
            self._index,
            targets,
            k=k,
            combine=combine,
            metric=metric,
            target_group=target_group,
            group_by=group_by,
            where=where,
            exact=exact,
            format=format,
            progress=progress,
        )

    def audit(
        self,
        *,
        trusted: Data | list[Sample] | None = None,
        class_field: str | None = None,
        where: str | Iterable[str] = (),
        top: int = 100,
        nearly: float = 0.98,
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> Audit:
        """Returns which training rows are likely wrong, why, and an estimate of how many.

        Runs all rows forward, and up to 512 with exchanged responses for the estimate.

        Args:
            trusted: rows that are known to be right, in the form of the index's rows; 30 or more
                make the estimate more exact.
            class_field: field of training (and trusted) rows: rows are compared within a class.
            where: only training rows that meet these conditions.
            top: suspects to list, at most; duplicates are listed in addition.
            nearly: least cosine of two near-duplicates.
            format: how trusted rows become tokens, if not as the index's rows do.
            progress: called as rows are run forward.

        Raises:
            InputError: fewer than three rows are left, a field is missing, or no row is trusted.
            RowError: a trusted row holds nothing to score.
        """
        from forvalue_index.analysis.audit.audit import audit

        return audit(
            self._index,
            trusted=trusted,
            class_field=class_field,
            where=where,
            top=top,
            nearly=nearly,
            format=format,
            progress=progress,
        )

    def select(
        self,
        targets: Data | list[Sample],
        *,
        budget: int | None = None,
        ratio: float | None = None,
        diversity: float = 1.0,
        dedup: float | None = 0.98,
        balance: str | None = None,
        combine: str = "each",
        metric: str | Metric = "dot",
        where: str | Iterable[str] = (),
        format: FormatConfig | None = None,
        progress: Progress | None = None,
    ) -> Selection:
        """Returns the training rows to keep for a set of targets; `stored` reads them by `ids`.

        Args:
            targets: what the model should do well, in the form of the index's rows.
            budget: how many rows; fewer are chosen when no more are left.
            ratio: the share of the rows instead.
            diversity: how much a row loses for repeating chosen ones; 0 chooses by value alone.
            dedup: rows with at least this cosine to a chosen one are left out; None: none is.
            balance: field: as many rows of each of its values, as far as there are enough.
            combine: "each": the highest share of a target's best score, so that every target
                counts the same; or "mean" or "max" of the scores over the targets.
            metric: of the scores, as in `query`.
            where: choose only among rows that meet these conditions.
            format: how targets become tokens, if not as the index's rows do.
            progress: called as the work goes on.

        Raises:
            InputError: not one of budget and ratio, one out of range, or as in `score`.
            RowError: a target lacks a field or holds nothing to score.
        """
        from forvalue_index.analysis.select import select

        return select(
            self._index,
            targets,
            budget=budget,
            ratio=ratio,
            diversity=diversity,
            dedup=dedup,
            balance=balance,
            combine=combine,
            metric=metric,
            where=where,
            format=format,
            progress=progress,
        )

    @property
    def evaluate(self) -> Evaluation:
        """Studies of how good the index is: fidelity, recall, identify, select."""
        from forvalue_index.analysis.evaluate.evaluation import Evaluation

        return Evaluation(self._index)
