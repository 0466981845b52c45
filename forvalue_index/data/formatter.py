"""Rows to samples: which text a row holds, its tokens, and which of them are scored.

    row -> text with marked parts -> tokens, some scored -> cut to the maximum length -> sample

Knows the tokenizer only as something that turns text into ids; knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat import ChatTemplate, own_template
from forvalue_index.data.identity import identity
from forvalue_index.data.image_text import Vision, expand, with_parts, with_placeholders
from forvalue_index.data.images import pictures_of
from forvalue_index.data.row_text import conversation_of, texts_of
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

Reject = Callable[[RowError, Row], None]
"""Called with what is wrong with a row that is left out, and the row."""


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
            raise InputError(
                f"max length is {max_length}, but scoring takes at least 2 tokens: use more"
            )
        self._chat: ChatTemplate | None = None
        if config.is_chat:
            template = config.chat_template or own_template(tokenizer)
            self._chat = ChatTemplate(template, tokenizer, config)
        elif config.eos and tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token to add: leave out --add-eos"
            )
        self.start = [] if self._chat else start_of(tokenizer, config)
        self.end = [] if self._chat else end_of(tokenizer, config)
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

        A prompt and a response are tokenised as one text, behind what the tokenizer adds at the
        start; the end token follows if it is scored. A conversation is tokenised as the one text
        that the chat template makes of it, nothing added. What is over the maximum length is cut
        off.

        Args:
            rows: rows, each after its place.
            reject: called with the error of a row that is left out, and the row; None: errors are
                raised.

        Raises:
            RowError: a row without usable text, or with nothing to score.
        """
        texts: list[tuple[str, Row, Rendered]] = []
        for source, row in rows:
            with left_out(row, reject):
                texts.append((source, row, self._text(row, source)))
        made: Iterator[Tokens | RowError]
        if self._config.form == 1 and self._chat is None:
            made = self._in_two_parts([item for _, _, item in texts])
        else:
            made = self._tokens([(source, item) for source, _, item in texts])
        samples = []
        for (source, row, _), tokens in zip(texts, made, strict=True):
            with left_out(row, reject):
                samples.append(self._sample(source, row, tokens))
        return samples

    def _text(self, row: Row, source: str) -> Rendered:
        """Returns what of a row is tokenised, the tokens of its images written out."""
        pictures = pictures_of(row, source, self._config)
        if self._vision is None:
            if pictures:
                raise InputError(
                    f"{source} has images, but the model reads text only: give a model that reads "
                    'images, or --image-field "" to leave them out'
                )
            if self._chat is None:
                return self._pair(row, source)
            talk = conversation_of(row, source, self._config)
            if self._config.form > 1 and any(
                isinstance(message.get("content"), list) for message in talk.messages
            ):
                raise RowError(
                    source,
                    "a message has an image, but the model reads text only: leave images out of "
                    "the messages, "
                    "or give a model that reads them",
                )
            return self._chat.render(talk, source)
        if self._chat is not None:
            talk = conversation_of(row, source, self._config)
            talk = replace(talk, messages=with_parts(talk.messages, len(pictures)))
            rendered = self._chat.render(talk, source)
        else:
            rendered = with_placeholders(self._pair(row, source), len(pictures), self._vision)
        for picture in pictures:
            picture.require_named(source)
        return expand(rendered, pictures, self._vision, source)

    def _pair(self, row: Row, source: str) -> Rendered:
        """Returns the text of a prompt and a response, or a plain text."""
        prompt, response = texts_of(row, source, self._config)
        return Rendered(prompt + response, [(len(prompt), len(prompt) + len(response))])

    def _tokens(self, texts: Sequence[tuple[str, Rendered]]) -> Iterator[Tokens | RowError]:
        """Yields the tokens of texts, or what is wrong with them."""
        made = tokenise(
            self._tokenizer, [(source, self._shortened(item)) for source, item in texts]
        )
        for tokens in made:
            yield tokens if self._chat or isinstance(tokens, RowError) else self._bounded(tokens)

    def _bounded(self, tokens: Tokens) -> Tokens:
        """Returns the tokens of a text without a chat template, with a start and an end.

        Neither is added to a text that has it.
        """
        ids, scored = tokens.ids.tolist(), tokens.scored
        if self._config.score == "all":
            scored = np.ones(len(ids), dtype=np.bool_)
        start = self.start if ids[: len(self.start)] != self.start else []
        end = self.end if ids[-1:] != self.end else []
        return Tokens(
            np.array([*start, *ids, *end], dtype=np.int32),
            np.concatenate([np.zeros(len(start), np.bool_), scored, np.ones(len(end), np.bool_)]),
        )

    def _in_two_parts(self, texts: Sequence[Rendered]) -> Iterator[Tokens | RowError]:
        """Yields the tokens of texts as indexes of the first form read them.

        Prompt and response are tokenised each by itself, and nothing is added at the start.
        """
        parts = []
        for item in texts:
            start = item.spans[0][0]
            for part in (item.text[:start], item.text[start:]):
                parts.append(self._shortened(Rendered(part, [])).text)
        ids = iter(ids_of(self._tokenizer, parts))
        for _ in texts:
            prompt, response = next(ids), next(ids)
            scored = np.full(len(prompt) + len(response) + len(self.end), True)
            scored[: len(prompt)] = self._config.score == "all"
            yield Tokens(np.array([*prompt, *response, *self.end], dtype=np.int32), scored)

    def _shortened(self, item: Rendered) -> Rendered:
        """Returns a text without what is certain to be cut off; with images, as it is."""
        if self._vision is not None:
            return item
        short = shortened(item, self._max_length)
        return short if short is item or self._splits_at_spaces else item

    @cached_property
    def _splits_at_spaces(self) -> bool:
        return splits_at_spaces(self._tokenizer)

    def _sample(self, source: str, row: Row, tokens: Tokens | RowError) -> Sample:
        if isinstance(tokens, RowError):
            raise tokens
        whole, bos = tokens, (self.start or [self._tokenizer.bos_token_id])[0]
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
def left_out(row: Row, reject: Reject | None) -> Iterator[None]:
    """Hands what is wrong with a row to `reject`, if there is one."""
    try:
        yield
    except RowError as error:
        if reject is None:
            raise
        reject(error, row)


def start_of(tokenizer: Any, config: FormatConfig) -> list[int]:
    """Returns the tokens that begin a text without a chat template: those the tokenizer adds."""
    if not config.bos or config.form == 1 or config.is_chat:
        return []
    [bare] = ids_of(tokenizer, ["a"])
    whole = tokenizer(["a"], return_attention_mask=False, verbose=False)["input_ids"][0]
    places = range(len(whole) - len(bare) + 1)
    place = next((i for i in places if whole[i : i + len(bare)] == bare), 0)
    return list(whole[:place])


def end_of(tokenizer: Any, config: FormatConfig) -> list[int]:
    """Returns the token that ends a text without a chat template, and is scored.

    Where nothing is said of it, a response has it, and a plain text has not.
    """
    if config.eos is False or config.is_chat or tokenizer.eos_token_id is None:
        return []
    wanted = config.eos or (config.form > 1 and config.text_field is None)
    return [tokenizer.eos_token_id] if wanted else []


def settled(config: FormatConfig, tokenizer: Any, max_length: int) -> FormatConfig:
    """Returns a configuration in which nothing is left to the tokenizer as it is today.

    Raises:
        InputError: rows are conversations, and there is no chat template.
    """
    template = config.chat_template
    if config.is_chat and template is None:
        template = own_template(tokenizer)
    return replace(config, max_length=max_length, chat_template=template)
