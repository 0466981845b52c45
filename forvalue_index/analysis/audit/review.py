"""The rows of an audit that people should look at, each with its reasons in words.

They are records, and can become rows of a spreadsheet or a page to browse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.estimate import LEAST, Estimate
from forvalue_index.analysis.audit.scores import Audit
from forvalue_index.analysis.page import fill
from forvalue_index.config import FormatConfig
from forvalue_index.data.row_text import texts_of
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Row, StoredSample

_NOTABLE = {"disagreement": 0.9, "needless prompt": 0.9, "untrusted": 0.9, "opposition": 0.98}
_NOTABLE |= {"loss": 0.98, "self-influence": 0.98}
"""Share of the rows that a score must be above, to be a reason."""

_TOGETHER = 0.9  # least suspicion that is a reason if no single score is one


def review(index: InfluenceIndex, found: Audit, top: int) -> list[Row]:
    """Returns the suspects and all rows that repeat or contradict another, most suspicious first.

    Suspects are those of the `top` most suspicious rows that have a reason.

    A row has id, key, suspicion, kind ("suspect", or the kind of its twin), reasons, twin (the key
    of the other row), scores and the sample.
    """
    suspicion = found.scores["suspicion"]
    order = np.argsort(-suspicion, kind="stable")
    usual = _Usual(found)
    suspects = {place: why for place in order[:top].tolist() if (why := usual.reasons(place))}
    twin_places = set(np.flatnonzero(np.isin(found.ids, list(found.twins))).tolist())
    listed = [place for place in order.tolist() if place in suspects or place in twin_places]
    ids = {int(found.ids[place]) for place in listed}
    ids |= {found.twins[id].of for id in ids & found.twins.keys()}
    samples = {sample.id: sample for sample in index.stored(sorted(ids))}
    return [_row(found, place, samples, suspects.get(place, [])) for place in listed]


def _row(found: Audit, place: int, samples: Mapping[int, StoredSample], reasons: list[str]) -> Row:
    """Returns what `review` says of the row at a position."""
    sample = samples[int(found.ids[place])]
    twin, other = found.twins.get(sample.id), None
    if twin is not None:
        other = samples[twin.of].key
        reasons = [_WORDS[twin.kind].format(key=other, cosine=twin.cosine), *reasons]
    scores = {name: float(score[place]) for name, score in found.scores.items()}
    return {
        "id": sample.id,
        "key": sample.key,
        "suspicion": scores.pop("suspicion"),
        "kind": "suspect" if twin is None else twin.kind,
        "reasons": reasons,
        "twin": other,
        "scores": scores,
        "sample": sample.row,
    }


_WORDS = {
    "duplicate": 'the same prompt and response as "{key}"',
    "contradiction": 'the same prompt as "{key}", with another response',
    "near-contradiction": 'a prompt one word apart from that of "{key}", with another response',
    "near-duplicate": 'nearly the same influence as "{key}" (cosine {cosine:.3f})',
}


class _Usual:
    """What is usual in an index, to tell what is not."""

    def __init__(self, found: Audit) -> None:
        self._found = found
        self._shares = {name: _below(score) for name, score in found.scores.items()}
        self._agreement = float(np.median(found.agreement))
        gains = found.gain[~np.isnan(found.gain)]
        self._gain = float(np.median(gains)) if len(gains) else float("nan")

    def reasons(self, place: int) -> list[str]:
        """Returns what is unusual about a row, the most important first."""
        found = self._found
        reasons = []
        for name, least in _NOTABLE.items():
            if name in found.scores and self._shares[name][place] >= least:
                reasons.append(self._words(name, place))
        if not reasons and found.scores["suspicion"][place] >= _TOGETHER:
            return ["no single score stands out, but several together do"]
        return reasons

    def _words(self, name: str, place: int) -> str:
        found, score = self._found, float(self._found.scores[name][place])
        more = f"higher than for {int(100 * self._shares[name][place])}% of the rows"
        if name == "disagreement":
            agreement = f"agreement {-score:+.2f}, usually {self._agreement:+.2f}"
            return f"disagrees with rows that have similar prompts ({agreement})"
        if name == "needless prompt":
            gain = float(found.gain[place])
            return (
                f"the prompt {'takes' if gain >= 0 else 'adds'} {abs(gain):.2f} nats per token "
                f"{'off' if gain >= 0 else 'to'} the response's loss; usually it "
                f"{'takes' if self._gain >= 0 else 'adds'} {abs(self._gain):.2f}"
                f"{' off' if self._gain >= 0 else ''}"
            )
        if name == "untrusted":
            return (
                f"disagrees with trusted rows that have similar prompts (agreement {-score:+.2f})"
            )
        if name == "opposition":
            return f"pulls against the other rows (cosine with their mean {-score:+.3f})"
        if name == "loss":
            return f"loss {score:.2f} nats per token, {more}"
        return f"self-influence {score:.3g}, {more}"


def verdict(found: Estimate) -> str:
    """Returns how many rows are wrong, in a sentence or two."""
    if found.share is None or found.high is None or found.low is None:
        why = "there are too few rows with a prompt and a response to say"
        if found.separation is not None:
            other = "a trusted one" if found.trusted else "the others"
            why = (
                f"their scores do not tell: a row with an exchanged response looks worse than "
                f"{other} in {found.separation:.0%} of pairs only"
            )
            if not found.trusted:
                why += (
                    f", or very many are wrong; {LEAST} or more trusted rows (--trusted) may tell"
                )
        return f"How many rows are wrong: {why}"
    most = round(found.high * found.rows)
    if found.few:
        text = f"Few or none have a response that belongs to another prompt (at most {most:,})"
    else:
        least, about = round(found.low * found.rows), round(found.share * found.rows)
        text = (
            f"About {about:,} ({found.share:.0%}; {least:,} to {most:,}) have a response that "
            "belongs to another prompt"
        )
        tops = ", ".join(f"{share:.0%} of the first {k}" for k, share in found.precision.items())
        text += f": {tops}" if tops else ""
    if found.trusted:
        return text
    if found.few:
        return f"{text}; {LEAST} or more trusted rows (--trusted) make this narrower"
    return (
        f"{text}. Right rows that the model cannot judge count as wrong here: {LEAST} or more "
        "trusted rows (--trusted) tell them apart"
    )


def flat_row(row: Row) -> Row:
    """Returns a row of `review` without nesting, for a spreadsheet."""
    result = {name: value for name, value in row.items() if name not in ("scores", "sample")}
    result["reasons"] = "; ".join(row["reasons"])
    result |= row["scores"]
    return result | {f"sample.{name}": value for name, value in row["sample"].items()}


def page(rows: Sequence[Row], format: FormatConfig, title: str) -> str:
    """Returns the rows of `review` as an HTML page to browse."""
    return fill("review.html", title, [_shown(row, format) for row in rows])


def _shown(row: Row, format: FormatConfig) -> Row:
    """Returns what the page shows of a row."""
    try:
        prompt, response = texts_of(row["sample"], row["key"], format)
    except InputError:
        prompt, response = "", json.dumps(row["sample"], ensure_ascii=False)
    names = ("key", "kind", "suspicion", "reasons", "scores")
    return {name: row[name] for name in names} | {"prompt": prompt, "response": response}


def _below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the share of the values that are lower than each value, [n]."""
    return np.searchsorted(np.sort(values), values) / len(values)
