"""The text of each token of a sample, for showing; knows a tokenizer, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from forvalue_index.records import Sample

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for half a character
CHARACTER = 4  # bytes of the longest character in UTF-8: no token waits longer for its end


class Decoder(Protocol):
    """The little that is asked of a Hugging Face tokenizer."""

    def decode(
        self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """Returns the text of some tokens."""


def pieces_of(tokenizer: Decoder, sample: Sample) -> list[str]:
    """Returns the text of each token of a sample; each of its texts is decoded by itself."""
    return [
        piece
        for part, _ in sample.texts
        for piece in pieces(tokenizer, sample.input_ids[part].tolist())
    ]


def pieces(tokenizer: Decoder, ids: Sequence[int]) -> list[str]:
    """Returns the text of each token, special ones included; joined, they are the whole text.

    Where a character takes several tokens, the last of them has it and the others are "". A token
    is decoded behind the one before it: decoders drop the space at the start of a text.
    """

    def decode(start: int, end: int) -> str:
        part = [int(id) for id in ids[start:end]]
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts: list[str] = []
    context = done = 0  # what is decoded along, and what has its text
    for end in range(1, len(ids) + 1):
        text = decode(context, end)
        if text.endswith(REPLACEMENT) and end < len(ids) and end - done < CHARACTER:
            texts.append("")
            continue
        texts.append(text[len(decode(context, done)) :])
        context, done = done, end
    return texts
