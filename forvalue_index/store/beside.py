"""What is kept beside each segment of an index, in INDEX/derived."""

from __future__ import annotations

from dataclasses import dataclass

from forvalue_index.store.sides import KeptSides
from forvalue_index.store.states import KeptStates
from forvalue_index.store.words import KeptWords


@dataclass(frozen=True, slots=True)
class Beside:
    """The kinds of it. Words and sides are made again where they are missing, states are not."""

    words: KeptWords
    sides: KeptSides
    states: KeptStates
