"""Hits by the words of rows, alone or beside their vectors.

    lexical = BM25 of the query's text and the row's
    hybrid  = 2 s^2 + c^2 + 0.4 w^2, with the signs of s, c and w

where s, c and w are state, cosine and lexical, each standardised over the rows of the query: a
part counts where it tells a row from the others. The state of a row is what the model made of its
text, whatever that did to the weights: the mean of the states that predict its scored tokens,
compared by the cosine. An index that has none goes on with the other two.

Influence says what a row did. To find where something came from, words and influence do better
together than either alone (docs/measurements.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.config import FormatConfig
from forvalue_index.data.field_guess import format_of_queries
from forvalue_index.data.row_text import texts_of
from forvalue_index.data.sources import open_rows
from forvalue_index.data.token_text import pieces_of
from forvalue_index.errors import RowError
from forvalue_index.metric import METRICS, Metric
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Hit, QueryVectors, Sample, listed, require_count
from forvalue_index.search.words import shared_spans
from forvalue_index.store.snapshot import Snapshot
from forvalue_index.store.states import LOST

QUERIES = 32  # whose scores of all rows are in memory at a time

WEIGHTS = {"state": 2.0, "cosine": 1.0, "lexical": 0.4}
"""Of the parts of hybrid. Words are rare or common by accident: they get the least."""

Scores = NDArray[np.float32]


def find(
    session: Session,
    samples: Sequence[Sample],
    k: int,
    metric: Metric,
    conditions: list[str],
    format: FormatConfig | None,
    known: QueryVectors | None = None,
) -> list[Hit]:
    """Returns the k best rows for each query under a metric in which words take part.

    Args:
        session: of the index.
        samples: the queries.
        k: hits per query, at most.
        metric: "lexical" or "hybrid".
        conditions: on the rows' fields; all must hold.
        format: how the queries became tokens, if not as the index's rows do.
        known: the vectors and states of the queries, if they were made already.
    """
    texts = [text_of(session, sample, format or session.config.format) for sample in samples]
    vectors = None
    if metric.vectors:
        vectors = session.query_vectors(list(samples)) if known is None else known
    return session.store.answer(
        lambda snapshot: list(_hits(session, snapshot, texts, vectors, k, metric, conditions))
    )


def search(session: Session, texts: Sequence[str], k: int, where: str | Iterable[str]) -> list[Hit]:
    """Returns the k rows that share most with each text, by BM25; see `InfluenceIndex.search`."""
    require_count(k, "k", "hits")
    return session.store.answer(
        lambda snapshot: list(
            _hits(session, snapshot, texts, None, k, METRICS["lexical"], listed(where))
        )
    )


def scores(
    session: Session, samples: Sequence[Sample], vectors: QueryVectors | None
) -> tuple[NDArray[np.int64], Scores]:
    """Returns the ids of all training samples [n] and their scores for queries [q, n].

    Without the queries' vectors, by words alone.
    """
    texts = [text_of(session, sample, session.config.format) for sample in samples]

    def ask(snapshot: Snapshot) -> tuple[NDArray[np.int64], Scores]:
        return snapshot.flat.ids, _joined(_parts(session, snapshot, texts, vectors))

    return session.store.answer(ask)


def text_of(session: Session, sample: Sample, format: FormatConfig) -> str:
    """Returns the text whose words a query has: of the part that is asked about, or all of it.

    Where the names of a row's fields do not tell its text, it is that of the tokens.
    """
    if sample.part is not None:
        return sample.part
    try:
        format = format_of_queries(open_rows(sample.row), format)  # as it became a sample
        return "\n".join(texts_of(sample.row, sample.source, format))
    except RowError:
        return "".join(pieces_of(session.lm.tokenizer, sample))


def _parts(
    session: Session, snapshot: Snapshot, texts: Sequence[str], vectors: QueryVectors | None
) -> dict[str, Scores]:
    """Returns the BM25 of all rows, and with vectors their cosine and state, [q, n] each."""
    parts = {"lexical": snapshot.lexicon.bm25(texts)}
    if vectors is None:
        return parts
    weights = snapshot.weights(METRICS["cosine"])
    cosine: Scores = snapshot.flat.scores(vectors.vectors, weights=weights)[1]
    cosine /= np.maximum(np.linalg.norm(vectors.vectors, axis=1), 1e-30)[:, None]
    parts["cosine"] = cosine
    if vectors.states is not None:
        states = snapshot.states
        if states is not None and states.dim == vectors.states.shape[1]:
            parts["state"] = states.cosines(vectors.states)
        elif len(snapshot.ids):
            session.tell_once(f"states of rows are missing or damaged: {LOST}")
    return parts


def _joined(parts: dict[str, Scores]) -> Scores:
    if len(parts) == 1:
        return parts["lexical"]
    total: Scores = np.sum(
        [WEIGHTS[name] * _standard(scores) for name, scores in parts.items()], axis=0
    )
    return total


def _standard(scores: Scores) -> Scores:
    """Returns scores [q, n] as squares of standard deviations above, or (negative) below, the mean.

    Mean and standard deviation are over the rows of each query.
    """
    wide = scores.astype(np.float64)
    spread = wide.std(axis=1, keepdims=True)
    wide -= wide.mean(axis=1, keepdims=True)
    wide /= np.where(spread > 0, spread, 1)
    standard: Scores = (wide * np.abs(wide)).astype(np.float32)
    return standard


def _hits(
    session: Session,
    snapshot: Snapshot,
    texts: Sequence[str],
    vectors: QueryVectors | None,
    k: int,
    metric: Metric,
    conditions: list[str],
) -> Iterator[Hit]:
    ids, format = snapshot.flat.ids, session.config.format
    allowed = np.ones(len(ids), bool)
    if conditions:
        allowed = np.isin(ids, snapshot.where(conditions))
    for start in range(0, len(texts), QUERIES):
        own = slice(start, start + QUERIES)
        some = None if vectors is None else vectors[own]
        scores = _parts(session, snapshot, texts[own], some)
        joined, lexical = _joined(scores), scores["lexical"]
        for number, text in enumerate(texts[own]):
            # Without a vector, a row that shares no word has nothing to do with the query.
            may = allowed if some is not None else allowed & (lexical[number] > 0)
            places = np.flatnonzero(may)
            order = np.argsort(-joined[number, places], kind="stable")[:k]
            best = places[order]
            rows = snapshot.samples(ids[best].tolist())
            found = np.sort(ids[best])
            norms = snapshot.figures(found).norm if some is not None else None
            for rank, place in enumerate(best, 1):
                id = int(ids[place])
                parts = {name: float(part[number, place]) for name, part in scores.items()}
                if some is not None and norms is not None:
                    norm = float(norms[np.searchsorted(found, id)])
                    length = float(np.linalg.norm(some.vectors[number]))
                    length /= session.vectoriser.scale**2
                    parts["influence"] = parts["cosine"] * length * norm
                row = rows[id]
                words = "\n".join(texts_of(row.row, row.key, format))
                shared = tuple(words[a:b] for a, b in shared_spans(words, text))
                score = float(joined[number, place])
                yield Hit(
                    start + number, rank, id, row.key, score, row.row, parts=parts, shared=shared
                )
