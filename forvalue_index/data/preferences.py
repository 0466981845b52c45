"""Preferences: a row that prefers one text to another, and a query why one and not the other.

Its influence is that of the chosen text minus that of the rejected one: what a step of preference
training (DPO) pushes, without the step's size. Of a row that is called undesirable (KTO) the
influence has the opposite sign.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.errors import InputError, RowError
from forvalue_index.records import Row, Sample

INSTEAD = "instead"
"""Field of a query that was typed: what could have been said instead."""

WORDS = {"true": True, "1": True, "false": False, "0": False}


def chosen_format(config: FormatConfig) -> FormatConfig:
    """Returns how the chosen text of a row is read."""
    others = [name for name in (config.rejected_field, config.desirable_field) if name]
    ignored = *config.ignored_fields, *others
    return replace(config, rejected_field=None, desirable_field=None, ignored_fields=ignored)


def rejected_format(config: FormatConfig) -> FormatConfig | None:
    """Returns how the rejected text of a row is read: as the chosen one; None: there is none."""
    if config.rejected_field is None:
        return None
    names = ("messages_field", "text_field", "response_field")
    place = next(name for name in names if getattr(config, name) is not None)
    fields: dict[str, Any] = {place: config.rejected_field}
    others = [name for name in (getattr(config, place), config.desirable_field) if name]
    ignored = *config.ignored_fields, *others
    return replace(chosen_format(config), **fields, ignored_fields=ignored)


def with_rejected(config: FormatConfig) -> FormatConfig:
    """Returns the format of a query that says what could have been said instead."""
    return replace(config, rejected_field=INSTEAD)


def is_desirable(row: Row, source: str, config: FormatConfig) -> bool:
    """Returns whether a row is one to be learned from; so is one of which nothing is said.

    Raises:
        RowError: what is said is neither true nor false.
    """
    if config.desirable_field is None:
        return True
    value = row.get(config.desirable_field, True)
    known = WORDS.get(str(value).casefold())
    if known is None:
        raise RowError(
            source, f"field {config.desirable_field!r} is {value!r}, neither true nor false"
        )
    return known


def contrast(chosen: Sample, rejected: Sample) -> Sample:
    """Returns the sample whose influence is that of one sample minus that of another.

    What both begin with has the same influence in both, so it is not scored.

    Raises:
        InputError: a sample is a contrast already, a classifier's, or both are the same.
    """
    for sample in (chosen, rejected):
        if sample.rejected is not None or sample.label is not None:
            raise InputError(
                "two texts can be contrasted, but not classes or contrasts: give a query with one "
                "text"
            )
    if chosen.images != rejected.images:
        raise RowError(
            chosen.source,
            "the chosen and the rejected text have not the same images: give both the same",
        )
    n = min(len(chosen.input_ids), len(rejected.input_ids))
    differ = np.flatnonzero(chosen.input_ids[:n] != rejected.input_ids[:n])
    same = int(differ[0]) if len(differ) else n
    scored = [sample.scored.copy() for sample in (chosen, rejected)]
    for own in scored:
        own[:same] = False
    if not any(own.any() for own in scored):
        raise RowError(
            chosen.source, "the chosen and the rejected text are the same, so nothing is preferred"
        )
    return replace(
        chosen,
        input_ids=np.concatenate([chosen.input_ids, rejected.input_ids]),
        scored=np.concatenate(scored),
        truncated=chosen.truncated or rejected.truncated,
        rejected=len(chosen.input_ids),
    )


def opposite(sample: Sample) -> Sample:
    """Returns the sample whose influence is the opposite of that of this one.

    Of two texts the rejected one becomes the chosen.
    """
    if not sample.rejected:
        return replace(sample, rejected=0 if sample.rejected is None else None)
    return replace(
        sample,
        input_ids=np.roll(sample.input_ids, -sample.rejected),
        scored=np.roll(sample.scored, -sample.rejected),
        rejected=len(sample.input_ids) - sample.rejected,
    )
