"""Text with marked parts to token ids with scored tokens, and what goes when there are too many.

Knows the tokenizer only as something that turns text into ids; knows no row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import islice, pairwise
from threading import RLock
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.errors import RowError

P = ParamSpec("P")
T = TypeVar("T")

_TOKENIZING = RLock()
_LONG = 16  # characters for each token that is kept, from which a text is worth shortening
_GAP = re.compile("(?<=[A-Za-z0-9]) (?=[A-Za-z])")  # the space between two words
_GAP_BACKWARDS = re.compile("(?<=[A-Za-z]) (?=[A-Za-z0-9])")
_OVER_A_GAP = re.compile("[A-Za-z0-9][ Ġ▁]")  # in a token; the last two are how many write a space

Span = tuple[int, int]
"""A part of a text: where it begins, and where it has ended, in characters."""


class Tokenizer(Protocol):
    """The little that is asked of a Hugging Face tokenizer."""

    eos_token_id: int | None
    bos_token_id: int | None
    is_fast: bool

    def __call__(self, text: list[str], **settings: Any) -> dict[str, Any]:
        """Returns the token ids of each text under "input_ids"."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A whole text as the model reads it, and the parts of it that are scored, in order."""

    text: str
    spans: list[Span]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, and which of them are scored."""

    ids: NDArray[np.int32]  # t
    scored: NDArray[np.bool_]  # t


def one_thread_at_a_time(function: Callable[P, T]) -> Callable[P, T]:
    """Returns a function that uses a tokenizer or its chat template, made safe for threads.

    Both have settings that belong to one call, and fail where a second call changes them.
    """

    @wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with _TOKENIZING:
            return function(*args, **kwargs)

    return locked


def splits_at_spaces(tokenizer: Any) -> bool:
    """Returns whether a token always begins at the space between two words.

    It does where no token of the vocabulary has a letter or digit with a space behind it. The
    tokens of two texts that meet at such a space are then those of the whole text.
    """
    if not tokenizer.is_fast:
        return False
    written = re.sub("[ Ġ▁#]", "", "".join(tokenizer.tokenize("a b")))
    return written == "ab" and not any(map(_OVER_A_GAP.search, tokenizer.get_vocab()))


def shortened(item: Rendered, max_length: int) -> Rendered:
    """Returns a text without the middle of its long parts, which no cut to `max_length` keeps.

    A part lies between two edges of spans. Its first and last `max_length` words stay, and are at
    least as many tokens if the tokenizer splits at spaces. `cut` then keeps the same tokens as of
    the whole text: a stretch in the middle of a part holds no more scored tokens than the stretch
    at the part's beginning, and the earliest of the best is kept.
    """
    if len(item.text) <= _LONG * max_length:
        return item
    text, spans = item.text, item.spans
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    for start, end in reversed(list(pairwise(edges))):
        if end - start <= _LONG * max_length:
            continue
        part = text[start:end]
        first = next(islice(_GAP.finditer(part), max_length + 1, None), None)
        last = next(islice(_GAP_BACKWARDS.finditer(part[::-1]), max_length + 1, None), None)
        if first is None or last is None:
            continue
        left, right = start + first.start(), end - last.end()
        if left < right:
            text = text[:left] + text[right:]
            gone = right - left
            spans = [(a - gone * (a >= end), b - gone * (b >= end)) for a, b in spans]
    return Rendered(text, spans)


def ids_of(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Returns the token ids of texts, nothing added, in one call."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def tokenise(
    tokenizer: Tokenizer, rendered: Sequence[tuple[str, Rendered]]
) -> Sequence[Tokens | RowError]:
    """Returns the tokens of whole texts (each after its place), or what is wrong with them.

    Each text is tokenised at once, and all in one call. A token is scored if a character of it is
    in a span: one that reaches over the edge of a span is, for the model has to predict what is
    inside. A special token stands for itself, and is scored if it begins inside (some swallow the
    white space behind them).
    """
    if not rendered:
        return []
    if not tokenizer.is_fast:
        return [_without_offsets(tokenizer, item, source) for source, item in rendered]
    encoded = tokenizer(
        [item.text for _, item in rendered],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,  # what is too long is cut, later
    )
    special = np.array(sorted(special_tokens(tokenizer).values()), dtype=np.int64)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    result = []
    for (_, item), (listed, offsets) in zip(rendered, pairs, strict=True):
        ids = np.array(listed, dtype=np.int32)
        starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        # Some tokenizers leave white space out of the offsets: it belongs to the token behind it.
        reached = np.maximum.accumulate(np.concatenate([[0], ends]))[:-1]
        whole = np.isin(ids, special)
        starts = np.where(whole, starts, np.minimum(starts, reached))
        result.append(Tokens(ids, _inside(starts, ends, whole, item.spans)))
    return result


def _inside(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    whole: NDArray[np.bool_],
    spans: Sequence[Span],
) -> NDArray[np.bool_]:
    """Returns which tokens are in a span; of `whole` ones, which begin in one."""
    if not spans:
        return np.zeros(len(starts), dtype=np.bool_)
    first, last = np.array(spans, dtype=np.int64).T  # one behind the other
    place = np.searchsorted(last, starts, side="right")  # of the first span that ends behind it
    begin = np.append(first, np.iinfo(np.int64).max)[place]
    inside: NDArray[np.bool_] = (begin < ends) & ~(whole & (starts < begin))
    return inside


def _without_offsets(tokenizer: Tokenizer, item: Rendered, source: str) -> Tokens | RowError:
    """Returns the tokens of a text, by how many of them stand before each edge of a span.

    For slow tokenizers, which do not say where in the text a token is. It is an error if a token
    reaches over an edge.
    """
    edges = sorted({edge for span in item.spans for edge in span})
    whole, *heads = ids_of(tokenizer, [item.text, *(item.text[:edge] for edge in edges)])
    for edge, head in zip(edges, heads, strict=True):
        if whole[: len(head)] != head:
            return RowError(
                source,
                f"the tokenizer gives no offsets, and one of its tokens spans character {edge}, "
                "where what is scored begins or ends: use a fast tokenizer",
            )
    counts = {edge: len(head) for edge, head in zip(edges, heads, strict=True)}
    scored = np.zeros(len(whole), dtype=np.bool_)
    for start, end in item.spans:
        scored[counts[start] : counts[end]] = True
    return Tokens(np.array(whole, dtype=np.int32), scored)


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Returns the tokens that stand for themselves in any text, and their ids.

    Runs of white space, which some tokenizers add as tokens, are text like any other.
    """
    texts = ((str(token), id) for id, token in tokenizer.added_tokens_decoder.items())
    added = {text: id for text, id in texts if text.strip()}
    named = tokenizer.all_special_tokens
    return added | dict(zip(named, tokenizer.convert_tokens_to_ids(named), strict=True))


def cut(tokens: Tokens, max_length: int, side: str, bos: int | None) -> Tokens:
    """Returns at most `max_length` tokens, of which the first is not scored.

    `side` "start" or "end" is what goes. "unscored": the tokens that stay are the ones next to
    each other with the most scored among them, the earliest such; so of a prompt and a response
    first the start of the prompt goes, then the end of the response. A beginning-of-sequence
    token stays when the start goes: many models cannot do without it.
    """
    n = len(tokens.ids)
    if n <= max_length:
        return _unpredicted(tokens)
    if side == "end":
        return _unpredicted(Tokens(tokens.ids[:max_length], tokens.scored[:max_length]))
    kept = 1 if tokens.ids[0] == bos and max_length > 2 else 0
    room = max_length - kept
    start = n - room
    if side == "unscored":
        sums = np.concatenate([[0], np.cumsum(tokens.scored)])
        firsts = np.arange(kept, start + 1)
        # The first token of a window has lost what it is predicted from, if there was anything.
        lost = (firsts > kept) | (firsts == 0)
        start = kept + int((sums[firsts + room] - sums[firsts + lost]).argmax())
    scored = tokens.scored.copy()
    scored[start] &= start == kept
    ids, scored = (
        np.concatenate([values[:kept], values[start : start + room]])
        for values in (tokens.ids, scored)
    )
    return _unpredicted(Tokens(ids, scored))


def _unpredicted(tokens: Tokens) -> Tokens:
    scored = tokens.scored.copy()
    scored[:1] = False  # token 0 is predicted by nothing
    return Tokens(tokens.ids, scored)
