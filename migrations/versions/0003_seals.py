"""segments and index_info: digests of all that is ranked, filtered or listed by."""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from forvalue_index.errors import CorruptIndexError

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

COLUMNS = {"index_info": ("segments", "state"), "segments": ("figures", "texts", "removed")}
COLUMNS["segments"] += ("checksum",)
CHECKED = "id, key, content_hash, n_tokens, n_scored, truncated, loss, norm, row"


def upgrade() -> None:
    for table, names in COLUMNS.items():
        for name in names:
            empty = sa.text("''")
            column = sa.Column(name, sa.String(32), server_default=empty, nullable=False)
            op.add_column(table, column)
    connection = op.get_bind()
    total = 0
    segments = connection.exec_driver_sql(
        "SELECT id, name, ntotal, bytes, sha256, created_at, retained_energy FROM segments"
    ).all()
    for id, *described in segments:
        figures, texts, removed = _digests(connection, id)
        checksum = _digest(*map(repr, (*described, figures, texts, removed)))
        total ^= int(checksum, 16)
        values = {"id": id, "figures": figures, "texts": texts, "removed": removed}
        connection.execute(
            sa.text(
                "UPDATE segments SET figures = :figures, texts = :texts, removed = :removed, "
                "checksum = :checksum WHERE id = :id"
            ),
            values | {"checksum": checksum},
        )
    info = connection.exec_driver_sql("SELECT next_id, generation, live FROM index_info").first()
    if info is not None:
        together = f"{total:032x}"
        connection.execute(
            sa.text("UPDATE index_info SET segments = :segments, state = :state"),
            {"segments": together, "state": _digest(*map(repr, (*info, together)))},
        )


def downgrade() -> None:
    for table, names in COLUMNS.items():
        for name in names:
            op.drop_column(table, name)


def _digests(connection: Any, segment: int) -> tuple[str, str, str]:
    """The digests of a segment's rows: numbers, texts, and ids of tombstones.

    No row that was changed gets a digest: each is held to its own checksum.
    """
    import numpy as np

    rows = connection.execute(
        sa.text(
            f"SELECT {CHECKED}, removed_at, checksum FROM samples "
            "WHERE segment_id = :segment ORDER BY id"
        ),
        {"segment": segment},
    ).all()
    texts, numbers, removed = hashlib.blake2b(digest_size=16), [], []
    for row in rows:
        *values, removed_at, checksum = row
        values[5] = bool(values[5])
        expected = _checksum(values, removed_at)
        if checksum != expected and values[6] == 0:
            # SQLite keeps no sign of a zero, with which it was sealed.
            values[6] = -0.0
            if checksum == _checksum(values, removed_at):
                checksum = expected
                connection.execute(
                    sa.text("UPDATE samples SET checksum = :checksum WHERE id = :id"),
                    {"checksum": checksum, "id": values[0]},
                )
            values[6] = 0.0
        if removed_at is not None:
            removed.append(values[0])
        if checksum != expected:
            raise CorruptIndexError(
                f"the catalogue's row of sample {values[0]} (key {values[1]!r}) was changed: its "
                f"checksum is {expected}, but {checksum} was committed; nothing was migrated: "
                "restore the catalogue from a copy, or build again"
            )
        id, key, content_hash, n_tokens, n_scored, truncated, loss, norm, text = values
        texts.update(f"{key}\n{content_hash}\n{n_tokens}\n{int(truncated)}\n{text}\n".encode())
        numbers.append((id, n_scored, loss, norm))
    figures = hashlib.blake2b(digest_size=16)
    for column, kind in enumerate(("<i8", "<i8", "<f8", "<f8")):
        figures.update(np.array([row[column] for row in numbers], kind).tobytes())
    gone = hashlib.blake2b(np.array(removed, "<i8").tobytes(), digest_size=16)
    return figures.hexdigest(), texts.hexdigest(), gone.hexdigest()


def _checksum(values: Any, removed_at: str | None) -> str:
    checksum = _digest(*map(repr, values))
    return checksum if removed_at is None else _digest(checksum, removed_at)


def _digest(*texts: Any) -> str:
    data = json.dumps(texts, default=repr).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
