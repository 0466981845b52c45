"""The words of samples, segment by segment, and what BM25 makes of them.

A word is a run of letters and digits in lower case; where a script has no spaces between words,
every character is one. Of a word 64 bits of its hash are kept. The prompt and the scored text of a
sample are counted apart. The files are derived: made again from the rows where they are missing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Segment
from forvalue_index.search.parts import parts_file, read_parts, write_parts

SUFFIX = ".words"
K1, B = 1.5, 0.75
"""Of BM25: how soon more of the same word counts for no more, and how much a long text is held
against it."""

# Scripts without spaces: Thai to Khmer, kana, Han, and what stands beside them.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])\w)+")

Ids = NDArray[np.int64]
Hashes = NDArray[np.uint64]
Counts = NDArray[np.int32]


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in their order."""
    return _WORD.findall(text.lower())


def hashes_of(words: Iterable[str]) -> Hashes:
    """Returns 64 bits of the hash of each word."""
    digests = [hashlib.blake2b(w.encode(errors="replace"), digest_size=8).digest() for w in words]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Words:
    """Which words stand in the n samples of a segment, and how often."""

    ids: Ids  # of the samples [n], ascending
    lengths: Counts  # words in the prompt and in the scored text [n, 2]
    terms: Hashes  # each word once, ascending [w]
    starts: NDArray[np.int64]  # where the samples of each word begin below, and the end [w + 1]
    places: Counts  # of samples, in `ids` [p]
    counts: Counts  # of the word in the prompt and in the scored text of that sample [p, 2]

    @classmethod
    def of(cls, ids: Ids, texts: Sequence[tuple[str, str]]) -> Words:
        """Returns the words of samples from their prompts and scored texts."""
        found: dict[str, int] = {}  # word -> number
        entries: list[tuple[int, int, int, int]] = []  # word, sample, how often in either text
        lengths = np.zeros((len(texts), 2), np.int32)
        for place, pair in enumerate(texts):
            split = [words_of(text) for text in pair]
            lengths[place] = [len(words) for words in split]
            prompt, scored = map(Counter, split)
            for word in prompt.keys() | scored.keys():
                number = found.setdefault(word, len(found))
                entries.append((number, place, prompt[word], scored[word]))
        table = np.array(entries, np.int64).reshape(-1, 4)
        terms, of_word = np.unique(hashes_of(found), return_inverse=True)
        term = of_word.reshape(-1)[table[:, 0]]
        order = np.lexsort((table[:, 1], term))
        return cls(
            np.asarray(ids, np.int64),
            lengths,
            terms,
            np.searchsorted(term[order], np.arange(len(terms) + 1)).astype(np.int64),
            table[order, 1].astype(np.int32),
            table[order, 2:].astype(np.int32),
        )

    def postings(self, term: np.uint64) -> tuple[Counts, Counts]:
        """Returns where a word stands: places of samples [m], and counts in either text [m, 2]."""
        at = int(np.searchsorted(self.terms, term))
        if at == len(self.terms) or self.terms[at] != term:
            return self.places[:0], self.counts[:0]
        part = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return self.places[part], self.counts[part]

    def write(self, folder: Path, segment: Segment) -> os.stat_result:
        """Keeps them beside the derived indexes.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        return write_parts(words_file(folder, segment), segment, self._parts(), _KINDS)

    @classmethod
    def read(cls, folder: Path, segment: Segment, *, known: bool = False) -> Words | None:
        """Returns what is kept of a segment; None: nothing, or nothing that can be believed."""
        read = read_parts(words_file(folder, segment), segment, _KINDS, known=known)
        if read is None:
            return None
        ids, lengths, terms, starts, places, counts = read[0]
        if lengths.size % 2 or counts.size % 2:
            return None
        pairs = lengths.reshape(-1, 2), counts.reshape(-1, 2)
        found = cls(ids, pairs[0], terms, starts, places, pairs[1])
        return found if known or found._fits() else None

    @classmethod
    def joined(cls, parts: Sequence[Words]) -> Words:
        """Returns the words of one segment that has the samples of several, in their order."""
        before = np.cumsum([0, *(len(words.ids) for words in parts)])
        every = np.concatenate([np.repeat(w.terms, np.diff(w.starts)) for w in parts])
        order = np.argsort(every, kind="stable")  # so that places ascend within a word
        ordered = every[order]
        new = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ np.uint64(1)))
        places = [words.places + start for words, start in zip(parts, before[:-1], strict=True)]
        return cls(
            np.concatenate([words.ids for words in parts]),
            np.concatenate([words.lengths for words in parts]),
            ordered[new],
            np.append(new, len(ordered)).astype(np.int64),
            np.concatenate(places)[order].astype(np.int32),
            np.concatenate([words.counts for words in parts])[order],
        )

    def _fits(self) -> bool:
        """Returns whether the parts belong together, whoever wrote them."""
        n, p = len(self.ids), len(self.places)
        sizes = len(self.lengths) == n and len(self.starts) == len(self.terms) + 1
        ascending = bool((self.ids[1:] > self.ids[:-1]).all() and (np.diff(self.starts) > 0).all())
        ends = sizes and self.starts[0] == 0 and self.starts[-1] == p == len(self.counts)
        within = bool(((self.places >= 0) & (self.places < n)).all())
        return bool(ends) and ascending and within

    def _parts(self) -> tuple[NDArray[np.generic], ...]:
        return self.ids, self.lengths, self.terms, self.starts, self.places, self.counts


_KINDS = "<i8", "<i4", "<u8", "<i8", "<i4", "<i4"


def words_file(folder: Path, segment: Segment) -> Path:
    """Where the words of a segment are kept."""
    return parts_file(folder, segment, SUFFIX)


class Lexicon:
    """The words of the live samples of an index. Safe to use from many threads."""

    def __init__(self, segments: Sequence[Words], live: Ids) -> None:
        """Takes the words of all segments, and the live ids, ascending [n]."""
        self.segments = segments
        self.ids = live
        lengths = np.zeros(len(live), np.int64)
        self._columns: list[Ids] = []  # of each segment's samples among the live; -1: removed
        for words in segments:
            at = np.searchsorted(live, words.ids)
            at = np.where(at < len(live), at, 0)
            there = live[at] == words.ids if len(live) else np.zeros(len(words.ids), bool)
            self._columns.append(np.where(there, at, -1))
            lengths[at[there]] = words.lengths.sum(axis=1)[there]
        mean = lengths.mean() if len(live) else 0.0
        self._norm = K1 * (1 - B + B * lengths / mean) if mean else np.full(len(live), K1)

    def bm25(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Returns the BM25 scores of all live samples for texts, [q, n]: 0 shares no word.

        Robertson and Zaragoza (2009), with the idf of Lucene, which is never negative. A word that
        stands several times in a query counts as often.
        """
        scores = np.zeros((len(queries), len(self.ids)), np.float32)
        for row, text in zip(scores, queries, strict=True):
            wanted = Counter(words_of(text))
            for term, times in zip(hashes_of(wanted), wanted.values(), strict=True):
                self._add(row, term, times)
        return scores

    def _add(self, row: NDArray[np.float32], term: np.uint64, times: int) -> None:
        columns, counts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for words, column in zip(self.segments, self._columns, strict=True):
            places, found = words.postings(term)
            there = column[places] >= 0
            columns.append(column[places][there])
            counts.append(found[there].sum(axis=1))
        at, often = np.concatenate(columns), np.concatenate(counts).astype(np.float64)
        idf = np.log(1 + (len(self.ids) - len(at) + 0.5) / (len(at) + 0.5))
        row[at] += times * idf * often / (often + self._norm[at])


def shared_spans(text: str, other: str, least: int = 4) -> list[tuple[int, int]]:
    """Returns where in `text` runs of `least` words or more stand that `other` has word for word.

    Each run is as long as it can be; starts and ends are in characters, in order, apart.
    """
    matches = list(_WORD.finditer(text))  # lower() may change lengths: compare word by word
    mine = [match[0].lower() for match in matches]
    theirs = words_of(other)
    runs = {tuple(theirs[i : i + least]) for i in range(len(theirs) - least + 1)}
    spans: list[tuple[int, int]] = []
    for i in range(len(mine) - least + 1):
        if tuple(mine[i : i + least]) not in runs:
            continue
        start, end = matches[i].start(), matches[i + least - 1].end()
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return spans
