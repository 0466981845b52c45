"""Rows to samples: which text a row holds, its tokens, and which of them are scored.

    row -> text with marked parts -> tokens, some scored -> cut to the maximum length -> sample

Knows the tokenizer only as something that turns text into ids; knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat import (
    ChatTemplate,
    Message,
    answers,
    messages_of,
    own_template,
    plain_text,
    weighted,
)
from forvalue_index.data.images import (
    Vision,
    bare,
    expand,
    pictures_of,
    with_parts,
    with_placeholders,
)
from forvalue_index.data.preferences import is_desirable, rejected_format
from forvalue_index.data.template import prompt_of
from forvalue_index.data.token_rows import given_tokens, tokens_in_words
from forvalue_index.data.tokens import (
    Rendered,
    Tokens,
    cut,
    ids_of,
    one_thread_at_a_time,
    shortened,
    splits_at_spaces,
    tokenise,
)
from forvalue_index.errors import InputError, RowError
from forvalue_index.picture import Picture
from forvalue_index.records import Row, Sample

LARGEST_ROW = 1 << 28  # characters of JSON, without images: databases keep less than 1 GB
DEEPEST = 100
"""Levels of lists and objects: what is stored can be read again, however deep the reader's calls
are, and databases can look into it."""
LONGEST_KEY = 2000  # bytes: PostgreSQL's indexes take no longer ones

Reject = Callable[[RowError], None]
"""Called with what is wrong with a row that is left out."""


def content_hash(row: Row, source: str = "row", config: FormatConfig | None = None) -> str:
    """Returns the hash of a row's content, 32 hex digits: equal rows, equal hashes.

    Every field counts, their order does not. Of an image its bytes count, not where they are.

    Args:
        row: with its images settled.
        source: where it stands.
        config: where it may have images; None: nowhere.

    Raises:
        RowError: the row holds something that JSON has no form for, half a surrogate pair, or
            more than can be stored.
    """
    row = bare(row, config) if config is not None else row
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(source, f"cannot be stored as JSON ({error})") from None
    if len(text) > LARGEST_ROW:
        raise RowError(
            source, f"has {len(text):,} characters as JSON, but at most {LARGEST_ROW:,} are stored"
        )
    if text.count("[") + text.count("{") > DEEPEST and _depth(row) > DEEPEST:
        raise RowError(
            source, f"is nested {_depth(row)} deep, but at most {DEEPEST} levels are stored"
        )
    if "\\ud" in text:  # so JSON writes a surrogate, also one of a whole pair
        for name, value in row.items():
            _check_text(name, f"the name of field {name!r}", source)
            whole = json.dumps(value, ensure_ascii=False)
            _check_text(whole, f"field {name!r}", source)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def texts_of(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the prompt and the response of a row, before any chat template.

    The prompt is "" for plain text. Of a conversation the response is what the assistant says
    last, and the prompt all that comes before it, a line each. Of a preference, the chosen text's.

    Raises:
        InputError: the template for prompts cannot be read.
        RowError: a field is missing, holds no text or has no text as name, or the scored text is
            empty.
    """
    check_names(row, source)
    if config.tokens_field is not None:
        return _texts_beside_tokens(row, source, config, config.tokens_field)
    is_desirable(row, source, config)
    other = rejected_format(config)
    if other is not None:
        texts_of(row, source, other)
    if config.label_field is not None:
        label_of(row, source, config.label_field)
    if config.text_field is not None:
        return "", _text(row, config.text_field, source, may_be_empty=False)
    if config.messages_field is not None:
        messages = messages_of(row, source, config.messages_field)
        last = [len(messages) - 1]
        if config.score != "all":
            last = weighted(messages, answers(messages), source)
        if not last:
            raise RowError(source, "no message from the assistant, so there is nothing to score")
        before = "\n".join(plain_text(message) for message in messages[: last[-1]])
        return before, plain_text(messages[last[-1]])
    prompt = _prompt(row, source, config)
    return prompt, _text(row, config.response_field, source, may_be_empty=False)


def _texts_beside_tokens(
    row: Row, source: str, config: FormatConfig, field: str
) -> tuple[str, str]:
    """Returns the texts that a row of tokens has too, or its tokens in words."""
    given_tokens(row, source, field)
    try:
        return texts_of(row, source, replace(config, tokens_field=None))
    except RowError:
        return "", tokens_in_words(row, field)


def check_names(row: Row, source: str) -> None:
    """Nothing, if the names of a row's fields are text, as they are in every file.

    Raises:
        RowError: one is not.
    """
    for name in row:
        if not isinstance(name, str):
            kind = type(name).__name__
            raise RowError(source, f"the name of a field must be text, but {name!r} is {kind}")


def label_of(row: Row, source: str, field: str) -> str | int:
    """Returns the class of a classifier's row, as its name or number stands there.

    Raises:
        RowError: there is none.
    """
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return _text(row, field, source, may_be_empty=False)


def _depth(value: Any) -> int:
    """Returns how many lists and objects stand in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def key_of(row: Row, source: str, config: FormatConfig) -> str:
    """Returns the row's own key, or its content hash when the index has no key field."""
    if config.key_field is None:
        return content_hash(row, source, config)
    key = _text(row, config.key_field, source, may_be_empty=False)
    if "\0" in key:
        raise RowError(source, f"key {key!r} holds a NUL, which a database cannot keep")
    if len(key.encode()) > LONGEST_KEY:
        raise RowError(
            source,
            f"key {key[:40]!r}… has {len(key.encode()):,} bytes, but at most "
            f"{LONGEST_KEY:,} can be found again: use a shorter key",
        )
    return key


def identity(row: Row, source: str, config: FormatConfig) -> tuple[str, str]:
    """Returns the row's key and its content hash."""
    content = content_hash(row, source, config)
    return (content if config.key_field is None else key_of(row, source, config)), content


def _prompt(row: Row, source: str, config: FormatConfig) -> str:
    if config.template is not None:
        return prompt_of(row, source, config.template)
    return _text(row, config.prompt_field, source, may_be_empty=True)


def _text(row: Row, field: str, source: str, *, may_be_empty: bool) -> str:
    if field not in row:
        there = ", ".join(row) or "none"
        raise RowError(source, f"no field {field!r}; the row's fields are: {there}")
    value = row[field]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = json.dumps(value)
        except ValueError as error:  # too many digits
            raise RowError(source, f"field {field!r} cannot be read as text ({error})") from None
    if not isinstance(value, str):
        kind = type(value).__name__
        if isinstance(value, dict) and value.keys() == {"bytes"}:
            kind = "bytes"  # as the reader of a table writes them
        raise RowError(source, f"field {field!r} is {kind}, not text")
    if not may_be_empty and not value:
        raise RowError(source, f"field {field!r} is empty")
    _check_text(value, f"field {field!r}", source)
    return value


def _check_text(text: str, what: str, source: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python makes these of bytes that are not UTF-8, such as in a command's arguments.
        byte = "\udc80" <= text[error.start] <= "\udcff"
        wrong = "is not UTF-8 text" if byte else "holds half a surrogate pair, not text"
        raise RowError(source, f"{what} {wrong}") from None


def conversation_of(row: Row, source: str, config: FormatConfig) -> list[Message]:
    """Returns the messages of a row; a prompt and a response are one of the user, one of the model.

    Raises:
        RowError: a field is missing, or holds neither text nor messages.
    """
    if config.messages_field is not None:
        return messages_of(row, source, config.messages_field)
    prompt, response = texts_of(row, source, config)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def tools_of(row: Row) -> list[Any] | None:
    """Returns the tools that a conversation may use (field "tools"), for the chat template."""
    tools = row.get("tools")
    if isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools):
        return tools
    return None


class Formatter:
    """Makes samples of rows with one tokenizer and one configuration."""

    def __init__(
        self,
        tokenizer: Any,
        config: FormatConfig,
        max_length: int,
        vocabulary: int | None = None,
        vision: Vision | None = None,
    ) -> None:
        """Takes a Hugging Face tokenizer.

        Args:
            tokenizer: what turns text into ids.
            config: how rows become tokens.
            max_length: the longest a sample may be, in tokens.
            vocabulary: how many tokens the model knows; None: all that the tokenizer gives.
            vision: how it reads images; None: it reads text only.

        Raises:
            InputError: the maximum length leaves nothing to score, or the tokenizer lacks the end
                token or the chat template that are asked for.
        """
        if max_length < 2:
            raise InputError(f"max length is {max_length}, but scoring takes at least 2 tokens")
        self._chat: ChatTemplate | None = None
        if config.is_chat:
            template = config.chat_template or own_template(tokenizer)
            self._chat = ChatTemplate(template, tokenizer, config)
        elif config.eos and tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token to add")
        self._tokenizer = tokenizer
        self._config = config
        self._max_length = max_length
        self._vocabulary = vocabulary
        self._vision = vision

    @one_thread_at_a_time
    def samples(
        self, rows: Sequence[tuple[str, Row]], reject: Reject | None = None
    ) -> list[Sample]:
        """Returns the samples of `rows`, in order; the texts are tokenised in one call.

        A prompt and a response are the prompt's tokens followed by the response's, each tokenised
        by itself, nothing added. A conversation is tokenised as the one text that the chat
        template makes of it, nothing added. What is over the maximum length is cut off.

        Args:
            rows: rows, each after its place.
            reject: called with the error of a row that is left out; None: errors are raised.

        Raises:
            RowError: a row without usable text, or with nothing to score.
        """
        texts: list[tuple[str, Row, Rendered | tuple[str, str]]] = []
        for source, row in rows:
            with left_out(reject):
                texts.append((source, row, self._text(row, source)))
        samples = []
        for (source, row, _), tokens in zip(texts, self._tokens(texts), strict=True):
            with left_out(reject):
                samples.append(self._sample(source, row, tokens))
        return samples

    def _text(self, row: Row, source: str) -> Rendered | tuple[str, str]:
        """Returns what of a row is tokenised."""
        if self._vision is not None:
            return self._text_with_images(row, source, self._vision)
        if pictures_of(row, source, self._config):
            raise InputError(
                f"{source} has images, but the model reads text only: give a model that reads "
                'images, or --image-field "" to leave them out'
            )
        if self._chat is None:
            return texts_of(row, source, self._config)
        messages = conversation_of(row, source, self._config)
        return self._chat.render(messages, source, tools_of(row))

    def _text_with_images(
        self, row: Row, source: str, vision: Vision
    ) -> Rendered | tuple[str, str]:
        """Returns what of a row is tokenised, the tokens of its images written out."""
        pictures = pictures_of(row, source, self._config)
        if self._chat is not None:
            messages = with_parts(conversation_of(row, source, self._config), len(pictures))
            rendered = self._chat.render(messages, source, tools_of(row))
            return expand(rendered, pictures, vision, source)
        prompt, response = texts_of(row, source, self._config)
        if self._config.text_field is not None and pictures:
            rendered = with_placeholders(
                Rendered(response, [(0, len(response))]), len(pictures), vision
            )
            return expand(rendered, pictures, vision, source)
        before = with_placeholders(Rendered(prompt, []), len(pictures), vision)
        return expand(before, pictures, vision, source).text, response

    def _tokens(
        self, texts: Sequence[tuple[str, Row, Rendered | tuple[str, str]]]
    ) -> Iterator[Tokens | RowError]:
        """Yields the tokens of texts, or what is wrong with them."""
        rendered = [
            (source, self._shortened(text))
            for source, _, text in texts
            if isinstance(text, Rendered)
        ]
        pairs = [
            [self._shortened(Rendered(part, [])).text for part in text]
            for _, _, text in texts
            if isinstance(text, tuple)
        ]
        yield from tokenise(self._tokenizer, rendered)
        ids = iter(ids_of(self._tokenizer, [text for pair in pairs for text in pair]))
        for _ in pairs:
            yield self._joined(next(ids), next(ids))

    def _shortened(self, item: Rendered) -> Rendered:
        """Returns a text without what is certain to be cut off; with images, as it is."""
        if self._vision is not None:
            return item
        short = shortened(item, self._max_length)
        return short if short is item or self._splits_at_spaces else item

    @cached_property
    def _splits_at_spaces(self) -> bool:
        return splits_at_spaces(self._tokenizer)

    def _joined(self, prompt: list[int], response: list[int]) -> Tokens:
        """Returns the tokens of a prompt and a response."""
        end = [self._tokenizer.eos_token_id] if self._config.eos else []
        ids = np.array([*prompt, *response, *end], dtype=np.int32)
        scored = np.full(len(ids), self._config.score == "all")
        scored[len(prompt) :] = True
        return Tokens(ids, scored)

    def _sample(self, source: str, row: Row, tokens: Tokens | RowError) -> Sample:
        if isinstance(tokens, RowError):
            raise tokens
        whole, bos = tokens, self._tokenizer.bos_token_id
        images = pictures_of(row, source, self._config)
        if images:
            whole, tokens = self._around_images(source, tokens, images)
        else:
            tokens = cut(whole, self._max_length, self._config.truncate, bos)
        if not tokens.scored.any():
            raise RowError(source, self._nothing(whole))
        largest = int(tokens.ids.max())
        if self._vocabulary is not None and largest >= self._vocabulary:
            raise RowError(
                source,
                f"token id {largest} is not one of the {self._vocabulary} that the model knows: "
                "the tokenizer's vocabulary is larger than the head; use the model's own tokenizer",
            )
        key, content = identity(row, source, self._config)
        return Sample(
            key=key,
            content_hash=content,
            row=row,
            input_ids=tokens.ids,
            scored=tokens.scored,
            truncated=len(tokens.ids) < len(whole.ids),
            source=source,
            images=images,
        )

    def _around_images(
        self, source: str, tokens: Tokens, images: Sequence[Picture]
    ) -> tuple[Tokens, Tokens]:
        """Returns a row's tokens, none of its images' scored, whole and cut behind the images.

        Raises:
            RowError: there is no room for anything to score behind them.
        """
        assert self._vision is not None
        taken = frozenset[int]().union(*(self._vision.special_ids(p.size) for p in images))
        of_images = np.isin(tokens.ids, list(taken))
        whole = Tokens(tokens.ids, tokens.scored & ~of_images)
        shorter = cut(whole, self._max_length, "end", None)
        if of_images[self._max_length :].any() or (
            whole.scored[1:].any() and not shorter.scored.any()
        ):
            raise RowError(
                source,
                f"{len(whole.ids)} tokens with its images, which are never cut, are too many for "
                f"the maximum length of {self._max_length}: use a larger --max-length",
            )
        return whole, shorter

    def _nothing(self, whole: Tokens) -> str:
        """Returns why nothing of a row is scored."""
        if len(whole.ids) == 1:
            return "one token without a prompt before it, so there is nothing to score"
        if not whole.scored[1:].any():
            return "no token belongs to the response, so there is nothing to score"
        return (
            f"all its scored tokens are among those lost when it is cut to {self._max_length}: use "
            "--truncate unscored, or a larger --max-length"
        )


@contextmanager
def left_out(reject: Reject | None) -> Iterator[None]:
    """Hands what is wrong with a row to `reject`, if there is one."""
    try:
        yield
    except RowError as error:
        if reject is None:
            raise
        reject(error)


def settled(config: FormatConfig, tokenizer: Any, max_length: int) -> FormatConfig:
    """Returns a configuration in which nothing is left to the tokenizer as it is today.

    Raises:
        InputError: rows are conversations, and there is no chat template.
    """
    template = config.chat_template
    if config.is_chat and template is None:
        template = own_template(tokenizer)
    return replace(config, max_length=max_length, chat_template=template)
