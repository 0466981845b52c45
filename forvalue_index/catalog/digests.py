"""Digests of what the catalogue keeps for many rows at once: of a segment, and of the whole.

    figures   of a segment: the numbers of its rows, which a reader loads as arrays anyway
    texts     of a segment: keys, hashes and JSON of its rows, a line each
    removed   of a segment: the ids of its tombstones, the one of the three that changes
    segment   of a row of `segments`: these three and all that describes its file
    state     of what every commit changes, and of all segments, by the XOR of their digests

Pure. They find damage and careless edits; whoever edits on purpose can compute them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forvalue_index.catalog.rows import SEAL_BYTES, digest
from forvalue_index.catalog.schema import FORMAT
from forvalue_index.records import Segment

NO_SEGMENTS = "0" * (2 * SEAL_BYTES)


def seal_figures(ids: ArrayLike, n_scored: ArrayLike, loss: ArrayLike, norm: ArrayLike) -> str:
    """Returns the digest of the numbers of a segment's rows [n] each, ordered by ids."""
    made = hashlib.blake2b(digest_size=SEAL_BYTES)
    for values, kind in ((ids, "<i8"), (n_scored, "<i8"), (loss, "<f8"), (norm, "<f8")):
        made.update(np.ascontiguousarray(values, kind).tobytes())
    return made.hexdigest()


def seal_ids(ids: ArrayLike) -> str:
    """Returns the digest of ids [n], in ascending order."""
    data = np.sort(np.asarray(ids, "<i8")).tobytes()
    return hashlib.blake2b(data, digest_size=SEAL_BYTES).hexdigest()


def text_line(row: dict[str, Any]) -> bytes:
    """Returns the texts of a row as they are hashed: what `text_seals` has the database make."""
    numbers = f"{row['n_tokens']}\n{int(row['truncated'])}"
    return f"{row['key']}\n{row['content_hash']}\n{numbers}\n{row['row']}\n".encode()


def seal_texts(lines: Sequence[bytes]) -> str:
    """Returns the digest of the lines of a segment's rows, ordered by their ids."""
    return hashlib.blake2b(b"".join(lines), digest_size=SEAL_BYTES).hexdigest()


def seal_segment(
    segment: Segment,
    created_at: str,
    retained_energy: float | None,
    figures: str,
    texts: str,
    removed: str,
) -> str:
    """Returns the digest of a row of `segments`."""
    described = segment.name, segment.ntotal, segment.bytes, segment.sha256
    return digest(*map(repr, (*described, created_at, retained_energy, figures, texts, removed)))


def seal_info(config: str, fingerprint: str, created_at: str) -> str:
    """Returns the checksum of what an index is."""
    return digest(str(FORMAT), config, fingerprint, created_at)


def seal_state(next_id: int, generation: int, live: int, segments: str) -> str:
    """Returns the digest of what every commit changes."""
    return digest(*map(repr, (next_id, generation, live, segments)))


def xor(*seals: str) -> str:
    """Returns the exclusive or of digests: adding one and taking one away are the same."""
    value = 0
    for seal in seals:
        value ^= int(seal, 16)
    return f"{value:0{2 * SEAL_BYTES}x}"
