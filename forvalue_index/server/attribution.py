"""What the server answers with the model of an index: hits, explanations, answers.

Knows no HTTP. Its methods run in the thread of the model, but for `find`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from forvalue_index.analysis.as_json import explanation_json
from forvalue_index.config import FormatConfig
from forvalue_index.data.preferences import INSTEAD, with_rejected
from forvalue_index.data.token_text import pieces
from forvalue_index.metric import metric_of
from forvalue_index.model.generation import Sampling
from forvalue_index.pipeline.explain import contributions
from forvalue_index.pipeline.query import MOST, query
from forvalue_index.records import Hit, QueryVectors, Row, Sample
from forvalue_index.server.lane import Stop
from forvalue_index.server.problem import HttpError
from forvalue_index.server.reading import Json, Reader
from forvalue_index.server.schema import Asked, AskRequest, Choice, ExplainRequest, QueryRequest
from forvalue_index.server.uploads import received, require_length

MOST_EXACT = 20  # hits with exact scores, whose candidates are not limited
MOST_PAIRS = 1 << 20  # of tokens, whose terms one answer holds


class Attribution:
    """Which training samples drove an output, for clients."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._index = reader.index

    def sample(self, asked: Asked) -> Sample:
        """Returns a query of which the part is scored that is asked about.

        Raises:
            HttpError: it is not one query, several parts are named, or none is there.
        """
        if sum(part is not None for part in (asked.span, asked.tokens, asked.characters)) > 1:
            raise HttpError(422, 'give one of "span", "tokens" and "characters"')
        row, format = typed(asked, self._index.config.format)
        samples = self._index.samples(row, format)
        if len(samples) != 1:
            raise HttpError(422, f"the row holds {len(samples)} samples: send one at a time")
        [sample] = samples
        if asked.row is not None and asked.instead is not None:
            sample = self._index.instead(sample, asked.instead)
        if asked.characters is not None:
            if asked.row is not None:
                whole = _answer(sample.row, self._index.config.format)
            else:
                whole = asked.response if asked.text is None else asked.text
            if not isinstance(whole, str):
                raise HttpError(422, 'the answer of the row is not one text: give "span"')
            tokens = self._tokens_of(sample, whole, asked.characters)
            return self._index.part(sample, tokens=tokens)
        return self._part(sample, asked)

    def require_known(self, asked: QueryRequest) -> None:
        """Checks that hits can be ranked as is asked, before the model runs.

        Raises:
            InputError: the metric has no exact form, or no opponents.
            HttpError: exact scores of too many candidates are wanted.
        """
        metric_of(asked.metric, exact=asked.exact, linear=asked.opponents)
        if asked.exact and asked.candidates is None and asked.k > MOST_EXACT:
            raise HttpError(
                422,
                f'"exact" runs up to {MOST} candidates for each hit: give "candidates", or at most '
                f'{MOST_EXACT} as "k"',
            )

    def find(
        self,
        sample: Sample,
        vectors: QueryVectors | None,
        asked: Choice,
        opponents: bool,
        stop: Stop,
    ) -> list[Hit]:
        """Returns the hits of a query; with its vectors [1, dim], the model is not run for them."""
        return query(
            self._index.session,
            sample,
            asked.k,
            opponents=opponents,
            metric=asked.metric,
            where=asked.where,
            exact=asked.exact,
            candidates=asked.candidates,
            flat=asked.flat,
            format=None,
            known=vectors,
            check=stop.check,
        )

    def named(self, sample: Sample, hits: Sequence[Hit], stop: Stop) -> list[Json]:
        """Returns hits with their tokens and what each contributed."""
        if not hits:
            return []
        passages = contributions(self._index.session, sample, hits, None, stop.check)
        return [self._reader.hit(*pair) for pair in zip(hits, passages, strict=True)]

    def explain(self, asked: ExplainRequest, stop: Stop) -> Json:
        """Returns through which tokens a training sample drove a response.

        Raises:
            HttpError: there is no such key, or there are too many pairs of tokens.
        """
        stored, sample = self._reader.find(asked.key), self.sample(asked)
        pairs = sample.n_scored * stored.n_scored
        if asked.terms and pairs > MOST_PAIRS:
            raise HttpError(
                413,
                f"there are {pairs:,} pairs of tokens, and an answer has at most {MOST_PAIRS:,}: "
                'give "terms": false',
            )
        stop.check()
        found = explanation_json(self._index.explain(sample, asked.key))
        if not asked.terms:
            del found["terms"]
        return found

    def ask(self, asked: AskRequest, stop: Stop, emit: Callable[[str, Json], None]) -> None:
        """Answers a prompt; `emit` gets each event: "token"s, the "answer", the "hits".

        A client that has gone away stops the generation at the next word.
        """
        metric_of(asked.metric, exact=asked.exact, linear=asked.opponents)
        row, format = prompted(asked, self._index.config.format)
        sampling = Sampling(asked.max_new_tokens, asked.temperature, asked.top_p, asked.seed)

        def report(text: str) -> None:
            stop.check()
            emit("token", {"text": text})

        sample = self._index.respond(row, sampling, format=format, report=report)
        shown = self._reader.shown(sample.row)
        cut = sample.n_scored == asked.max_new_tokens
        answer = _answer(sample.row, format)
        emit("answer", {"row": shown, "response": answer, "cut_off": cut})
        stop.check()
        if asked.instead is not None:
            sample = self._index.instead(sample, asked.instead, format=format)
        sample = self._part(sample, asked)
        hits = self.find(sample, None, asked, asked.opponents, stop)
        emit("hits", {"row": shown, "hits": self.named(sample, hits, stop)})

    def _part(self, sample: Sample, asked: Asked | AskRequest) -> Sample:
        if asked.span is not None:
            return self._index.part(sample, asked.span)
        if asked.tokens is not None:
            return self._index.part(sample, tokens=slice(*asked.tokens))
        return sample

    def _tokens_of(self, sample: Sample, whole: str, characters: Sequence[int]) -> slice:
        """Returns the scored tokens that hold characters of a response, or of a plain text.

        Raises:
            HttpError: there are none.
        """
        own, _ = sample.texts[0]  # without what is said instead
        tokenizer, ids = self._index.lm.tokenizer, sample.input_ids[own].tolist()
        texts, special = pieces(tokenizer, ids), set(tokenizer.all_special_ids)
        shown = [
            "\0" * len(text) if id in special else text for id, text in zip(ids, texts, strict=True)
        ]
        joined, ends = "".join(shown), np.cumsum([len(text) for text in texts])
        # A template may drop the space around a response, which is what comes last.
        core = whole if whole in joined else whole.strip()
        start = joined.rfind(core)
        first, end = (place - whole.find(core) + start for place in characters)
        first, end = max(first, start), min(end, start + len(core))
        chosen = np.zeros(len(sample.input_ids), bool)
        if 0 <= start <= first < end:
            low, high = np.searchsorted(ends, [first, end - 1], side="right")
            while low and not texts[low - 1]:  # earlier tokens of the same character
                low -= 1
            chosen[low : high + 1] = True
        among = np.flatnonzero(chosen[sample.scored])
        if not len(among):
            raise HttpError(
                422,
                f"characters {characters[0]} to {characters[1]} of the response are not among the "
                'tokens that are scored: name the part by "span" or "tokens"',
            )
        return slice(int(among[0]), int(among[-1]) + 1)


def typed(asked: Asked, format: FormatConfig) -> tuple[Row, FormatConfig | None]:
    """Returns a query as a row, and its format, given that of the index; None: a row's own.

    Raises:
        HttpError: it is not one query, is too long, or an image is not in the request.
    """
    require_length([asked.prompt, asked.response, asked.text, asked.label, asked.span])
    require_length([asked.instead])
    prompted = asked.response is not None or asked.prompt is not None
    if asked.row is not None:
        if prompted or asked.text is not None or asked.images or asked.label is not None:
            raise HttpError(
                422, 'a "row" has its own prompt, text, images and label: give it alone'
            )
        return received(asked.row, format, "the row"), None
    if prompted == (asked.text is not None) or (prompted and asked.response is None):
        raise HttpError(422, 'give "prompt" and "response", or "text", or "row"')
    if (asked.label is None) != (format.label_field is None):
        wanted = 'give "label" too' if asked.label is None else 'leave out "label"'
        kind = "a classifier's" if asked.label is None else "not a classifier's"
        raise HttpError(422, f"the index is {kind}: {wanted}")
    more: Row = {} if format.label_field is None else {format.label_field: asked.label}
    if asked.instead is not None:
        more[INSTEAD] = asked.instead
    if asked.text is not None:
        field = format.text_field or "text"
        row: Row = {field: asked.text}
        format = replace(format.of_kind("text_field"), text_field=field)
    else:
        row = {format.prompt_field: asked.prompt or "", format.response_field: asked.response}
        format = format.of_kind("prompt_field")
    if asked.instead is not None:
        format = with_rejected(format)
    return _with_images(row | more, asked.images, format)


def prompted(asked: AskRequest, format: FormatConfig) -> tuple[Row, FormatConfig]:
    """Returns the row that the model answers, and its format, given that of the index.

    Raises:
        HttpError: it is not one prompt, is too long, or an image is not in the request.
    """
    require_length([asked.prompt, asked.span, asked.instead])
    if (asked.prompt is None) == (asked.row is None) or (asked.row is not None and asked.images):
        raise HttpError(422, 'give "prompt" and its "images", or a "row" without an answer')
    if asked.row is not None:
        return received(asked.row, format, "the row"), format
    format = format.of_kind("prompt_field")
    return _with_images({format.prompt_field: asked.prompt}, asked.images, format)


def _with_images(row: Row, images: Sequence[str], format: FormatConfig) -> tuple[Row, FormatConfig]:
    if not images:
        return row, format
    format = replace(format, image_field=format.image_field or "image")
    return received(row | {str(format.image_field): list(images)}, format, "the request"), format


def _answer(row: Row, format: FormatConfig) -> Any:
    """Returns the text of the answer in an answered row."""
    field = format.messages_field if format.messages_field in row else format.response_field
    value = row.get(field or "")
    return value[-1].get("content") if isinstance(value, list) else value
