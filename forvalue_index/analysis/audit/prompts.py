"""Prompts and responses of training rows, each on its own: states of prompts, losses of responses.

It takes one forward pass of the prompts and one of the responses, a page of rows at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.analysis.audit.unit_vectors import unit
from forvalue_index.data.row_text import texts_of
from forvalue_index.index import InfluenceIndex
from forvalue_index.records import Progress, Sample

_PAGE = 512  # rows run forward together
_FIT = 4096  # rows that the whitening is learned from
_WIDTH = 256  # numbers that are kept of each state


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is known of the prompts and responses of n rows."""

    states: NDArray[np.float32]  # [n, p] unit, whitened; of the prompt, or of a text without one
    bare: NDArray[np.float64]  # [n] nats, loss of the response alone; NaN if the row has no prompt
    prompt: NDArray[np.uint64]  # [n] hash of the prompt; 0 without one
    response: NDArray[np.uint64]  # [n] hash of the response
    words: list[NDArray[np.uint32]]  # n hashes of the words of the prompt; odd: number, name


def read_prompts(
    index: InfluenceIndex,
    ids: NDArray[np.int64],
    others: Sequence[Sample] = (),
    progress: Progress | None = None,
) -> tuple[Prompts, NDArray[np.float32]]:
    """Returns the prompts of the training samples `ids`, and the whitened states of `others`.

    The whitening is learned from the training samples.
    """
    tokenizer, passes = index.lm.tokenizer, index.passes
    chosen = np.random.default_rng(0).permutation(ids)[:_FIT]
    whiten = _Whitening(passes.states(_prompts(index.training_samples(np.sort(chosen).tolist()))))
    result = Prompts(
        states=np.empty((len(ids), whiten.width), np.float32),
        bare=np.full(len(ids), np.nan),
        prompt=np.zeros(len(ids), np.uint64),
        response=np.zeros(len(ids), np.uint64),
        words=[],
    )
    tokens = 0
    for start in range(0, len(ids), _PAGE):
        samples = index.training_samples(ids[start : start + _PAGE].tolist())
        part = slice(start, start + len(samples))
        result.states[part] = whiten(passes.states(_prompts(samples)))
        texts = [texts_of(sample.row, sample.source, index.config.format) for sample in samples]
        hashes = [_hashes(*both, sample) for both, sample in zip(texts, samples, strict=True)]
        result.words.extend(_words(prompt) for prompt, _ in texts)
        result.prompt[part], result.response[part] = np.array(hashes, np.uint64).T
        there = np.flatnonzero(result.prompt[part])
        if len(there):
            alone = [bare(samples[i], tokenizer) for i in there]
            result.bare[start + there] = passes.losses(alone)
        tokens += sum(len(sample.input_ids) for sample in samples)
        if progress is not None:
            progress("prompts", start + len(samples), len(ids), tokens)
    states = [
        whiten(passes.states(_prompts(others[start : start + _PAGE])))
        for start in range(0, len(others), _PAGE)
    ]
    return result, np.concatenate([np.empty((0, whiten.width), np.float32), *states])


class _Whitening:
    """Removes what states share: subtracts their mean and equalises their principal directions."""

    def __init__(self, states: NDArray[np.float32]) -> None:
        self._mean = states.mean(0, dtype=np.float64)
        centred = states - self._mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(states))
        values, vectors = values[::-1][:_WIDTH], vectors[:, ::-1][:, :_WIDTH]
        self._map = vectors / np.sqrt(np.maximum(values, 0) + values.mean() + 1e-30)
        self.width = self._map.shape[1]

    def __call__(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit((states - self._mean) @ self._map)


def has_prompt(sample: Sample) -> bool:
    """Returns whether more than one token comes before the first that is scored.

    A preference counts as having none: how its prompt fits two texts is not asked.
    """
    return sample.label is None and sample.rejected is None and first_scored(sample) > 1


def first_scored(sample: Sample) -> int:
    """Returns the position of the first scored token."""
    return int(sample.scored.argmax())


def _prompts(samples: Sequence[Sample]) -> list[Sample]:
    """Returns samples whose scored tokens are predicted from the states of the prompts."""
    result = []
    for sample in samples:
        if has_prompt(sample):
            # Images may follow, and their tokens and pixels have to stay together.
            end = len(sample.input_ids) if sample.images else first_scored(sample) + 1
            scored = (np.arange(end) > 0) & (np.arange(end) <= first_scored(sample))
            sample = replace(sample, input_ids=sample.input_ids[:end], scored=scored)
        result.append(sample)
    return result


def bare(sample: Sample, tokenizer: Any) -> Sample:
    """Returns the response after a single token without meaning."""
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, int(sample.input_ids[0]))
    start = next(id for id in starts if id is not None)
    ids = np.array([start, *sample.input_ids[sample.scored]], np.int32)
    return replace(sample, input_ids=ids, scored=np.arange(len(ids)) > 0, images=())


def _hashes(prompt: str, response: str, sample: Sample) -> tuple[int, int]:
    """Returns hashes of the texts of the prompt (0 if there is none) and the response."""
    seen = [picture.digest for picture in sample.images]
    return _hash(prompt, seen) if has_prompt(sample) else 0, _hash(response, sample.label)


def _words(text: str) -> NDArray[np.uint32]:
    """Returns a hash of each word, in lower case; its lowest bit tells a number or a name.

    These are words with a digit, and those with a capital after the first word.
    """
    hashes = []
    for place, word in enumerate(re.findall(r"\w+", text)):
        special = any(letter.isdigit() for letter in word) or (place > 0 and word[0].isupper())
        hashes.append(zlib.crc32(word.lower().encode()) & ~1 | special)
    return np.array(hashes, np.uint32)


def _hash(*values: object) -> int:
    digest = hashlib.blake2b(json.dumps(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
