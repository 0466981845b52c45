"""Rows that repeat or contradict another one: of one prompt, or of prompts a word apart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.prompts import Prompts

_TEMPLATE = 2  # prompts that are a word apart from one, at most; more of them are a template
_SHORT = 4  # words of a prompt, at least, to be a word apart from another


@dataclass(frozen=True, slots=True)
class Twin:
    """The row that another row repeats or contradicts."""

    kind: str  # "duplicate", "contradiction", "near-contradiction" or "near-duplicate"
    of: int  # id of the other row
    cosine: float  # of the two vectors for near-duplicates, else 1


def find_twins(
    ids: NDArray[np.int64],
    prompts: Prompts,
    near: NDArray[np.int64],
    plain: NDArray[np.float32],
    nearly: float,
) -> dict[int, Twin]:
    """Returns the rows that repeat or contradict another: id -> twin.

    A duplicate has the prompt and the response of an earlier row. A contradiction has the prompt of
    another row with a different response; of several, each is paired with the first. A
    near-contradiction has another response than a neighbour (`near`) whose prompt is a word apart.
    A near-duplicate is neither, and the cosine of its vector (`plain`) with an earlier neighbour's
    is at least `nearly`.
    """
    twins: dict[int, Twin] = {}
    whole: dict[tuple[int, int], int] = {}
    asked: dict[int, int] = {}
    pairs = zip(ids.tolist(), prompts.prompt.tolist(), prompts.response.tolist(), strict=True)
    for id, prompt, response in pairs:
        first = whole.setdefault((prompt, response), id)
        if first != id:
            twins[id] = Twin("duplicate", first, 1.0)
        elif prompt and (other := asked.setdefault(prompt, id)) != id:
            twins[id] = Twin("contradiction", other, 1.0)
            twins.setdefault(other, Twin("contradiction", id, 1.0))
    for pair in _word_apart(prompts, near):
        for one, another in (pair, pair[::-1]):
            twin = Twin("near-contradiction", int(ids[another]), 1.0)
            twins.setdefault(int(ids[one]), twin)
    earlier = (near >= 0) & (near < np.arange(len(ids))[:, None]) & (plain >= nearly)
    for place in np.flatnonzero(earlier.any(1)):
        best = int(np.argmax(np.where(earlier[place], plain[place], -2)))
        twin = Twin("near-duplicate", int(ids[near[place, best]]), float(plain[place, best]))
        twins.setdefault(int(ids[place]), twin)
    return twins


def _word_apart(prompts: Prompts, near: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Returns the pairs of positions whose prompts are a word apart, with different responses.

    A prompt with more than two such neighbours is one of a template, and left out.
    """
    n = len(near)
    partners: dict[int, set[int]] = defaultdict(set)
    for one in np.flatnonzero(prompts.prompt).tolist():
        for other in near[one][(near[one] >= 0) & (near[one] < n)].tolist():
            if (
                prompts.prompt[other] not in (0, prompts.prompt[one])
                and prompts.response[one] != prompts.response[other]
                and word_apart(prompts.words[one], prompts.words[other])
            ):
                partners[one].add(other)
                partners[other].add(one)
    return [
        (one, other)
        for one, others in sorted(partners.items())
        for other in sorted(others)
        if one < other and max(len(others), len(partners[other])) <= _TEMPLATE
    ]


def word_apart(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> bool:
    """Returns whether one word was changed, added or left out; neither a number nor a name.

    Takes hashes of words, odd ones for numbers and names. Prompts of fewer than four words are too
    short to be nearly the same.
    """
    short, long = sorted((one, other), key=len)
    if len(short) < _SHORT or len(long) - len(short) > 1:
        return False
    differ = short != long[: len(short)]
    start = int(differ.argmax()) if differ.any() else len(short)
    left = len(short) - start
    changed = [long[start : start + 1]]
    if len(short) == len(long):
        left -= min(left, 1)
        changed.append(short[start : start + 1])
    same = np.array_equal(short[len(short) - left :], long[len(long) - left :])
    return same and not any((words & 1).any() for words in changed)
