"""Makes a derived index from the segments, measures it, and extends it.

Vectors are read a block at a time: what is in memory is a training sample and the FAISS index.
The caller holds the writer's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forvalue_index.errors import InputError
from forvalue_index.search.ann import DerivedSearch, check_current
from forvalue_index.search.ann_factory import Effort, new_index, train
from forvalue_index.search.ann_files import (
    DerivedInfo,
    Side,
    read_file,
    read_info,
    write_file,
    write_info,
)
from forvalue_index.search.backend import faiss
from forvalue_index.search.checked import CheckedFiles
from forvalue_index.search.common import Ids, Scores, best_of
from forvalue_index.search.flat import FlatSearch

StageProgress = Callable[[str, int, int], None]
"""Called with a stage ("training", "adding" or "measuring"), steps done, steps in all."""

_QUERIES = 200
_PER_LIST = 64  # training vectors for each list; FAISS asks for 39 to 256
_TRAIN = 50_000  # training vectors at least, if there are that many
_TRAIN_NUMBERS = 2**28  # and at most 1 GiB of them
_FACTORS = 1, 2, 4, 8, 16, 32, 64
_SECONDS = 2.0  # that each speed is measured for


def make_derived(
    folder: str | Path,
    flat: FlatSearch,
    factory: str,
    *,
    name: str = "dot",
    metric: str = "dot",
    weights: ArrayLike | None = None,
    generation: int = 0,
    queries: Scores | None = None,
    target: float = 0.95,
    seed: int = 0,
    progress: StageProgress | None = None,
) -> DerivedInfo:
    """Makes a derived index over all live vectors, in the place of one of the same name.

    Its search is set to the least efforts whose recall@10 and @100 against exact search reach
    `target` by one standard error, for proponents and for opponents apart. If opponents
    are not found so often, exact search answers for them; `DerivedInfo.notes` says so.

    Args:
        folder: INDEX/derived; made if it is not there.
        flat: the segments, as they are now.
        factory: a FAISS factory string.
        name: what it is called; by convention its metric.
        metric: what `weights` make, to be kept with it.
        weights: as in `FlatSearch.search`; vectors are multiplied by them.
        generation: the catalogue's, to be kept with it.
        queries: [q, dim] to measure with; default: 200 of the vectors, held out until then.
        target: recall to reach.
        seed: of the training sample, the clusters and the queries.
        progress: called as the work goes on.

    Raises:
        InputError: FAISS does not know the factory string, cannot train it on so few vectors, or
            cannot leave samples out of its answers; there are no vectors; a weight is wrong.
        OSError: the disk is full, or the folder cannot be written.
    """
    if not flat.ntotal:
        raise InputError("there are no samples to make a derived index of: add rows first")
    report = progress or (lambda stage, done, total: None)
    table = None if weights is None else np.asarray(weights, np.float32)
    index = new_index(flat.dim, factory, seed)
    rng = np.random.default_rng(seed)
    lists = faiss().try_extract_index_ivf(index)
    wanted = max(_TRAIN, _PER_LIST * (lists.nlist if lists is not None else 0))
    sample = _sample(flat, table, min(wanted, _TRAIN_NUMBERS // flat.dim), rng)
    # One factor for all vectors changes no order, and keeps small weighted ones within fp16.
    scale = 1 / max(float(np.sqrt(np.mean(np.square(sample)))), 1e-30)
    sample *= np.float32(scale)
    report("training", 0, 1)
    train(index, sample, factory)
    report("training", 1, 1)
    del sample
    held = np.empty(0, np.int64)
    if queries is None:
        # Not in the index while it is measured: a graph would lead from a vector to its neighbours.
        places = rng.choice(flat.ntotal, min(_QUERIES, flat.ntotal // 10), replace=False)
        held = np.sort(flat.ids[places])
        queries = flat.vectors(held if len(held) else flat.ids)
    queries = flat.checked(queries)
    others = np.setdiff1d(flat.ids, held, assume_unique=True)
    _add(index, flat, others, table, scale, report)
    none = Side(1, 1, 0.0, 0.0, 0.0, 0.0)
    info = DerivedInfo(
        name=name,
        factory=factory,
        metric=metric,
        file="",
        bytes=0,
        sha256="",
        dim=flat.dim,
        ntotal=len(others),
        segments={segment.name: segment.sha256 for segment in flat.segments},
        generation=generation,
        scale=scale,
        seed=seed,
        measured_on=len(others),
        queries=len(queries),
        target=target,
        k_factor=1,
        proponents=none,
        opponents=none,
    )
    info = _measured(info, index, flat, table, queries, others, report)
    _add(index, flat, held, table, scale, report)
    Path(folder).mkdir(parents=True, exist_ok=True)
    file, size, sha256 = write_file(folder, name, index)
    info = replace(info, file=file, bytes=size, sha256=sha256, ntotal=index.ntotal)
    write_info(folder, info)
    return info


def extend_derived(
    folder: str | Path,
    flat: FlatSearch,
    name: str = "dot",
    *,
    weights: ArrayLike | None = None,
    generation: int = 0,
    checked: CheckedFiles | None = None,
) -> DerivedInfo:
    """Adds the vectors of newer segments to the derived index NAME; nothing is trained again.

    Its file is replaced by a new one in one step. Recall is not measured again.

    Args:
        folder: INDEX/derived.
        flat: the segments, as they are now.
        name: which one.
        weights: those of the metric it was made for, one for each of `flat.ids`.
        generation: the catalogue's, to be kept with it.
        checked: as in `open_derived`.

    Raises:
        IndexMissingError: there is none of this name.
        CorruptIndexError: it is damaged, or covers segments that are no longer there.
    """
    info = read_info(folder, name)
    path = info.path_in(folder)
    check_current(info, flat, path)
    newer = np.setdiff1d(flat.ids, flat.every_id_in(info.segments), assume_unique=True)
    if not len(newer):
        return info
    index = read_file(path, info, mapped=False, checked=checked)
    table = None if weights is None else np.asarray(weights, np.float32)
    _add(index, flat, newer, table, info.scale)
    file, size, sha256 = write_file(folder, name, index)
    info = replace(
        info,
        file=file,
        bytes=size,
        sha256=sha256,
        ntotal=index.ntotal,
        segments={segment.name: segment.sha256 for segment in flat.segments},
        generation=generation,
    )
    write_info(folder, info)
    return info


def _sample(
    flat: FlatSearch, weights: NDArray[np.float32] | None, count: int, rng: np.random.Generator
) -> Scores:
    """Returns up to `count` of the vectors, weighted, in the order of their ids."""
    if weights is not None:
        flat.check_weights(weights)
    count = min(count, flat.ntotal)
    places = np.sort(rng.choice(flat.ntotal, count, replace=False))
    vectors = flat.vectors(flat.ids[places])
    return _scaled(vectors, None if weights is None else weights[places], 1.0)


def _scaled(vectors: Scores, weights: NDArray[np.float32] | None, scale: float) -> Scores:
    """Vectors [m, dim] as they go into the FAISS index."""
    if weights is not None:
        vectors *= weights[:, None]
    vectors *= np.float32(scale)
    return vectors


def _add(
    index: Any,
    flat: FlatSearch,
    ids: Ids,
    weights: NDArray[np.float32] | None,
    scale: float,
    report: StageProgress = lambda stage, done, total: None,
) -> None:
    done = 0
    for block, vectors in flat.blocks(ids):
        own = None if weights is None else weights[np.searchsorted(flat.ids, block)]
        index.add_with_ids(_scaled(vectors, own, scale), block)
        done += len(block)
        report("adding", done, len(ids))


def _measured(
    info: DerivedInfo,
    index: Any,
    flat: FlatSearch,
    weights: NDArray[np.float32] | None,
    queries: Scores,
    ids: Ids,
    report: StageProgress,
) -> DerivedInfo:
    """Returns `info` with search parameters that suffice, and figures measured with them.

    `ids` are those that are in the index.
    """
    steps = 6
    report("measuring", 0, steps)
    truths = [
        flat.search(queries, 100, opponents=against, allowed=ids, weights=weights)[1]
        for against in (False, True)
    ]
    report("measuring", 1, steps)
    searcher = DerivedSearch(info, index, flat, weights)
    most = Effort(index).most(info.ntotal)
    sides = [(queries, truths[0]), (-queries, truths[1])]
    # Candidates: as many as make up for the codes, when all lists are looked into.
    wide = [_Candidates(searcher, asked, truth, most, 10 * max(_FACTORS)) for asked, truth in sides]
    kept = 1 - (1 - info.target) / 2
    factor = next(
        (f for f in _FACTORS if all(trial.recall(10, f).mean() >= kept for trial in wide)),
        max(_FACTORS),
    )
    info = replace(info, k_factor=factor)
    searcher = DerivedSearch(info, index, flat, weights)
    report("measuring", 2, steps)
    found = []
    for number, (asked, truth) in enumerate(sides):
        effort = _least(searcher, asked, truth, most, 10, factor, info.target)
        at = _Candidates(searcher, asked, truth, effort, 10 * factor)
        recall = float(at.recall(10, factor).mean())
        more = max(effort, _least(searcher, asked, truth, most, 100, factor, info.target))
        side = Side(effort, more, recall, 1.0, 0.0, 0.0)
        needed = searcher.needed(side, 100, info.ntotal)
        if needed is not None:  # else all are compared
            hundred = _Candidates(searcher, asked, truth, needed, 100 * factor)
            side = replace(side, recall_at_100=float(hundred.recall(100, factor).mean()))
        # For proponents the index is used in any case: it was asked for.
        found.append(replace(side, flat=bool(number) and recall < info.target))
        report("measuring", 3 + number, steps)
    info = replace(info, proponents=found[0], opponents=found[1])
    searcher = DerivedSearch(info, index, flat, weights)
    for number, side in enumerate(found):
        against = bool(number)
        found[number] = replace(
            side,
            queries_per_second=_rate(partial(searcher.search, k=10, opponents=against), queries),
            flat_queries_per_second=_rate(
                partial(flat.search, k=10, opponents=against, weights=weights), queries
            ),
        )
        report("measuring", 5 + number, steps)
    return replace(info, proponents=found[0], opponents=found[1])


class _Candidates:
    """The candidates that an effort finds, compared with the exact top of each query."""

    def __init__(
        self, searcher: DerivedSearch, queries: Scores, truth: Ids, effort: int, m: int
    ) -> None:
        self._searcher, self._queries, self._truth = searcher, queries, truth
        self._ids = searcher.candidates(queries, m, effort)

    def recall(self, k: int, factor: int) -> NDArray[np.float64]:
        """Returns the share of each query's top k among the best of k * factor candidates, [q]."""
        ids = self._ids[:, : k * factor]
        best = best_of([self._searcher.scored(self._queries, ids)], [ids], k)[1]
        pairs = zip(self._truth[:, :k], best, strict=True)
        return np.array([np.isin(row, got).mean() for row, got in pairs])


def _least(
    searcher: DerivedSearch,
    queries: Scores,
    truth: Ids,
    most: int,
    k: int,
    factor: int,
    target: float,
) -> int:
    """Returns the least effort at which recall of the top k reaches the target by a standard error;
    `most` if none does."""

    def reaches(effort: int) -> bool:
        recall = _Candidates(searcher, queries, truth, effort, k * factor).recall(k, factor)
        return bool(recall.mean() - recall.std() / np.sqrt(len(recall)) >= target)

    low, high = 0, 1
    while high < most and not reaches(high):
        low, high = high, 2 * high
    high = min(high, most)
    while high - low > max(1, low // 16):  # a smaller step is within what 200 queries can tell
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _rate(search: Callable[[Scores], object], queries: Scores) -> float:
    """Queries per second, one at a time, after a first one."""
    search(queries[:1])
    done, start = 0, time.perf_counter()
    while done < len(queries) and time.perf_counter() - start < _SECONDS:
        search(queries[done : done + 1])
        done += 1
    return done / (time.perf_counter() - start)
