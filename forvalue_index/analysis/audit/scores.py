"""Which training rows are likely wrong: scores that need no labels, and duplicates.

Two signs matter most. A response that does not belong to its prompt is hardly more likely after
the prompt than without it, and its influence disagrees with that of rows with similar prompts. How
reliable a sign is depends on the data. Its weight is the distance of the median row from zero,
where an unrelated prompt and response would be, in units of the spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.agreement import agreement, nearest
from forvalue_index.analysis.audit.estimate import Estimate
from forvalue_index.analysis.audit.exchange import Around, estimate_wrong, read, untrusted
from forvalue_index.analysis.audit.prompts import read_prompts
from forvalue_index.analysis.audit.suspicion import suspicion_in
from forvalue_index.analysis.audit.twins import Twin, find_twins
from forvalue_index.analysis.audit.unit_vectors import Floats, UnitVectors
from forvalue_index.analysis.field_values import NONE, field_values, label
from forvalue_index.config import FormatConfig
from forvalue_index.data.sources import Data
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Row, Sample, listed
from forvalue_index.rendering.frames import Tabular
from forvalue_index.store.snapshot import Snapshot

NEIGHBOURS = 15  # rows with similar prompts that a row is compared with
GUIDES = 3  # trusted rows with similar prompts that a row is compared with
NEARLY = 0.98  # least cosine of two near-duplicates


@dataclass(frozen=True, slots=True)
class Audit(Tabular):
    """The training samples of an index in the order of their ids, with signs that they are wrong.

    The scores are, the higher the more suspicious:
    suspicion: the weighted mean rank by the next two or three, 0 to 1.
    disagreement: with the influence of rows with similar prompts, trusted ones among them.
    untrusted: disagreement with the nearest trusted rows alone; only if there are trusted rows.
    needless prompt: how little likelier the prompt makes the response; only if there are prompts.
    opposition: the negative cosine with the mean of all other rows.
    loss, self-influence: as the index stores them.
    """

    ids: NDArray[np.int64]
    scores: dict[str, Floats]  # name -> [n]
    agreement: Floats  # [n] with the influence of rows with similar prompts, -1 to 1
    gain: Floats  # [n] nats per token by which the prompt lowers the loss; NaN without a prompt
    twins: dict[int, Twin]  # id -> the row that it repeats or contradicts
    estimate: Estimate  # how many are wrong
    rows: list[Row] = field(default_factory=list)  # the rows to look at; see `review`

    def table(self) -> list[Row]:
        """Returns the rows to look at without nesting; their fields are "sample.FIELD"."""
        from forvalue_index.analysis.audit.review import flat_row

        return [flat_row(row) for row in self.rows]

    def _repr_html_(self) -> str:
        from forvalue_index.analysis.audit.review import verdict
        from forvalue_index.rendering.html import suspects_html

        return suspects_html(self.rows, verdict(self.estimate))


def score_rows(
    index: InfluenceIndex,
    *,
    trusted: Data | list[Sample] | None = None,
    class_field: str | None = None,
    where: str | Iterable[str] = (),
    nearly: float = NEARLY,
    format: FormatConfig | None = None,
    progress: Progress | None = None,
    estimated: bool = True,
) -> Audit:
    """Returns the scores of every training row, without the rows to look at.

    Runs all rows forward, and up to 512 of them again for an estimate of how many are wrong, unless
    `estimated` is False. The other arguments are those of `InfluenceIndex.audit`.

    Raises:
        InputError: fewer than three rows are left, a field is missing, or there is no trusted row.
        RowError: a trusted row holds nothing to score.
    """
    conditions = listed(where)
    known = [] if trusted is None else index.samples(trusted, format)

    def ask(view: Snapshot) -> Audit:
        ids = view.where(conditions) if conditions else view.ids
        n = len(ids)
        if n < 3:
            raise InputError(
                f"{n} training rows: an audit needs 3 or more; add rows, or change --where"
            )
        figures = view.figures(ids)
        classes = _classes(index, ids, known, class_field)
        prompts, states = read_prompts(index, ids, known, progress)
        states = np.concatenate([prompts.states, states])
        trusted_vectors, losses = read(index, known) if known else (None, np.zeros(0))
        vectors = UnitVectors(view, ids, trusted_vectors)
        near = nearest(states, classes, np.arange(len(states)), n, NEIGHBOURS)
        plain, centred = vectors.cosines(near)
        agreed = agreement(centred, near)
        scores, guides = {"disagreement": -agreed}, None
        if known:
            guides = nearest(states, classes, np.arange(n, len(states)), n, GUIDES)
            scores["untrusted"] = untrusted(vectors.cosines(guides)[1], guides)
        gain = prompts.bare - figures.loss
        if not np.isnan(gain).all():
            # The mean over many tokens varies less: it is compared in its standard errors.
            scaled = gain * np.sqrt(figures.n_scored)
            scores["needless prompt"] = -np.nan_to_num(scaled, nan=np.nanmedian(scaled))
        suspicion, found = suspicion_in(scores, figures.loss), Estimate(n)
        if estimated and "needless prompt" in scores:
            around = Around(vectors, states, classes, near, agreed, losses, guides)
            found = estimate_wrong(index, ids, known, prompts, around, scores, suspicion, progress)
        scores |= {
            "opposition": -vectors.with_the_rest(),
            "loss": figures.loss,
            "self-influence": (figures.norm / index.vectoriser.scale) ** 2,
        }
        twins = find_twins(ids, prompts, near, plain, nearly)
        return Audit(ids, {"suspicion": suspicion} | scores, agreed, gain, twins, found)

    return index.answer(ask)


def _classes(
    index: InfluenceIndex, ids: NDArray[np.int64], known: list[Sample], field: str | None
) -> NDArray[np.int64]:
    """Returns a number for the class of each training row, then of each trusted one."""
    if field is None:
        return np.zeros(len(ids) + len(known), np.int64)
    found = field_values(index, ids, field)
    numbers = {name: number for number, name in enumerate(found.names)}
    names = [label(sample.row, field) or NONE for sample in known]
    own = [numbers.setdefault(name, len(numbers)) for name in names]
    return np.concatenate([found.codes, np.array(own, np.int64)])
