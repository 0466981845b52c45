"""What the server answers from an index, as JSON values; knows no HTTP.

A row is as it was given, but of its pictures only the hash and the size are told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from forvalue_index.analysis.as_json import explanation_json, hit_json
from forvalue_index.data.images import of_pictures
from forvalue_index.data.token_text import pieces
from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.model.generation import Sampling
from forvalue_index.picture import HASH
from forvalue_index.pipeline.query import MOST
from forvalue_index.records import Hit, Row, Sample, StoredSample
from forvalue_index.server.lane import Stop
from forvalue_index.server.problem import HttpError, Names
from forvalue_index.server.schema import (
    Asked,
    AskRequest,
    Choice,
    ExplainRequest,
    QueryRequest,
    require_length,
)

Json = dict[str, Any]

MOST_EXACT = 20  # hits with exact scores, whose candidates are not limited
MOST_PAIRS = 1 << 20  # of tokens, whose terms one answer holds
PLACES = ("directory", "catalog")  # of `info`, which are this machine's own


class Answers:
    """An index, and what it answers to the requests of `schema`."""

    def __init__(self, index: InfluenceIndex) -> None:
        self.index = index
        self.names = Names(index)

    def info(self) -> Json:
        """Returns what the index holds, without the places where it and its model are."""
        info = {name: value for name, value in self.index.info().items() if name not in PLACES}
        model = info["config"]["model"]
        of = self.names.of
        adapters = [of(adapter) for adapter in model["adapters"]]
        named = model | {"name": of(model["name"]), "adapters": adapters}
        if "adapters" in info:
            info["adapters"] = [*map(of, info["adapters"])]
        return info | {
            "model": of(info["model"]),
            "config": info["config"] | {"model": named},
            "fields": self.index.fields(),
        }

    def rows(self, where: Sequence[str], after: int, limit: int) -> Json:
        """Returns a page of rows, and whether there are more."""
        found = list(self.index.rows(where, after=after, limit=limit + 1))
        return {"rows": [*map(self._stored, found[:limit])], "more": len(found) > limit}

    def row(self, key: str) -> Json:
        """Returns one row.

        Raises:
            HttpError: there is none under the key.
        """
        return self._stored(self._find(key))

    def search(self, words: str, k: int, where: Sequence[str]) -> Json:
        """Returns the rows that share most words with a text."""
        require_length(words)
        return {"hits": [self._hit(hit) for hit in self.index.search(words, k, where=where)]}

    def query(self, asked: QueryRequest, stop: Stop) -> Json:
        """Returns the hits of a query."""
        sample = self._sample(asked)
        stop.check()
        hits = self._query(sample, asked, asked.opponents)
        stop.check()
        return {"hits": self._named(sample, hits) if asked.highlight else [*map(self._hit, hits)]}

    def explain(self, asked: ExplainRequest, stop: Stop) -> Json:
        """Returns through which tokens a training sample drove a response.

        Raises:
            HttpError: there is no such key, or there are too many pairs of tokens.
        """
        stored, sample = self._find(asked.key), self._sample(asked)
        pairs = sample.n_scored * stored.n_scored
        if asked.terms and pairs > MOST_PAIRS:
            raise HttpError(
                413,
                f"there are {pairs:,} pairs of tokens, and an answer has at most {MOST_PAIRS:,}: "
                'give "terms": false',
            )
        stop.check()
        found = explanation_json(self.index.explain(sample, asked.key))
        if not asked.terms:
            del found["terms"]
        return found

    def ask(self, asked: AskRequest, stop: Stop, emit: Callable[[str, Json], None]) -> None:
        """Answers a prompt; `emit` gets each event: "token"s, the "answer", the "hits".

        A client that has gone away stops the generation at the next word.
        """
        require_length(asked.prompt, asked.span)
        format = self.index.config.format.of_kind("prompt_field")
        sampling = Sampling(asked.max_new_tokens, asked.temperature, asked.top_p, asked.seed)

        def report(text: str) -> None:
            stop.check()
            emit("token", {"text": text})

        row: Row = {format.prompt_field: asked.prompt}
        sample = self.index.respond(row, sampling, format=format, report=report)
        answer = sample.row[format.response_field]
        cut = sample.n_scored == asked.max_new_tokens
        emit("answer", {"row": self._shown(sample.row), "response": answer, "cut_off": cut})
        stop.check()
        if asked.span is not None or asked.tokens is not None:
            tokens = None if asked.tokens is None else slice(*asked.tokens)
            sample = self.index.part(sample, asked.span, tokens=tokens)
        hits = self._query(sample, asked, asked.opponents)
        stop.check()
        emit("hits", {"row": self._shown(sample.row), "hits": self._named(sample, hits)})

    def _find(self, key: str) -> StoredSample:
        try:
            return self.index.get(key)
        except InputError:
            raise HttpError(404, "no row has this key: see /api/rows for those there are") from None

    def _sample(self, asked: Asked) -> Sample:
        """Returns a query of which the part is scored that is asked about.

        Raises:
            HttpError: several parts are named, or none is there.
        """
        given = [asked.span, asked.tokens, asked.characters]
        if sum(part is not None for part in given) > 1:
            raise HttpError(422, 'give one of "span", "tokens" and "characters"')
        row, format = asked.row(self.index.config.format)
        [sample] = self.index.samples(row, format)
        if asked.span is not None:
            return self.index.part(sample, asked.span)
        if asked.tokens is not None:
            return self.index.part(sample, tokens=slice(*asked.tokens))
        if asked.characters is not None:
            whole = asked.response if asked.text is None else asked.text
            tokens = self._tokens_of(sample, whole or "", asked.characters)
            return self.index.part(sample, tokens=tokens)
        return sample

    def _tokens_of(self, sample: Sample, whole: str, characters: Sequence[int]) -> slice:
        """Returns the scored tokens that hold characters of a response, or of a plain text.

        Raises:
            HttpError: there are none.
        """
        texts = pieces(self.index.lm.tokenizer, sample.input_ids.tolist())
        joined, ends = "".join(texts), np.cumsum([len(text) for text in texts])
        # A template may drop the space around a response, which is what comes last.
        core = whole if whole in joined else whole.strip()
        start = joined.rfind(core)
        first, end = (place - whole.find(core) + start for place in characters)
        first, end = max(first, start), min(end, start + len(core))
        chosen = np.zeros(len(texts), bool)
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

    def _query(self, sample: Sample, choice: Choice, opponents: bool) -> list[Hit]:
        if choice.exact and choice.candidates is None and choice.k > MOST_EXACT:
            raise HttpError(
                422,
                f'"exact" runs up to {MOST} candidates for each hit: give "candidates", or at most '
                f'{MOST_EXACT} as "k"',
            )
        return self.index.query(
            sample,
            choice.k,
            opponents=opponents,
            metric=choice.metric,
            where=choice.where,
            exact=choice.exact,
            candidates=choice.candidates,
            flat=choice.flat,
        )

    def _named(self, sample: Sample, hits: list[Hit]) -> list[Json]:
        """Returns hits with their tokens and what each contributed."""
        passages = self.index.contributions(sample, hits) if hits else []
        pairs = zip(hits, passages, strict=True)
        return [self._without_pictures(hit_json(*pair)) for pair in pairs]

    def _hit(self, hit: Hit) -> Json:
        return self._without_pictures(hit_json(hit))

    def _without_pictures(self, hit: Json) -> Json:
        return hit | {"sample": self._shown(hit["sample"])}

    def _stored(self, stored: StoredSample) -> Json:
        return asdict(stored) | {"row": self._shown(stored.row)}

    def _shown(self, row: Row) -> Row:
        """Returns a row without the bytes of its pictures and the places where they are."""
        return of_pictures(
            row,
            self.index.config.format,
            lambda picture: {HASH: picture[HASH], "size": picture.get("size")},
        )


def finite(value: Any) -> Any:
    """Returns JSON values with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
