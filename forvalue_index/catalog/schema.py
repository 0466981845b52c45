"""The tables of the catalogue, and nothing else: behaviour is in `catalog.py`.

Knows of no file, vector or model. A change here comes with its migration in the same commit.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

FORMAT = 2
"""Of the segment files and of what the fingerprint means; the tables have their revision."""

REVISION = "0004"
"""Of the tables below: that of the newest migration."""

# On SQLite only the type INTEGER makes a primary key the row's own address.
_BigKey = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """Base of the tables. Every constraint has a name, so that a migration can change it."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )


class IndexInfoTable(Base):
    """One row: what the index is."""

    __tablename__ = "index_info"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    format: Mapped[int] = mapped_column(Integer)  # of segments and fingerprint, not of tables
    config: Mapped[str] = mapped_column(Text)  # JSON object
    fingerprint: Mapped[str] = mapped_column(Text)  # JSON object
    created_at: Mapped[str] = mapped_column(Text)  # ISO 8601, UTC
    next_id: Mapped[int] = mapped_column(BigInteger)  # the first sample id never given out
    generation: Mapped[int] = mapped_column(BigInteger)  # +1 with every committed change
    checksum: Mapped[str] = mapped_column(String(32))  # of format, config, fingerprint, created_at
    # Live samples: a row that was lost or hidden shows in their count.
    live: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    segments: Mapped[str] = mapped_column(String(32), server_default=text("''"))  # XOR of checksums
    state: Mapped[str] = mapped_column(String(32), server_default=text("''"))  # of all that changes


class SegmentTable(Base):
    """One row per committed file of vectors."""

    __tablename__ = "segments"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    ntotal: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(Text)
    # Share of the samples' energy that the learned projection kept; NULL where there is none.
    retained_energy: Mapped[float | None] = mapped_column(Double)
    # Digests of its rows, tombstones included (`seals.py`): their numbers, their texts, and which
    # of them are removed.
    figures: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    texts: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    removed: Mapped[str] = mapped_column(String(32), server_default=text("''"))
    checksum: Mapped[str] = mapped_column(String(32), server_default=text("''"))  # of all but id


class SampleTable(Base):
    """One row per vector. A row with `removed_at` is a tombstone: it is kept until compaction."""

    __tablename__ = "samples"
    __table_args__ = (
        Index(
            "uq_samples_live_key",
            "key",
            unique=True,
            sqlite_where=text("removed_at IS NULL"),
            postgresql_where=text("removed_at IS NULL"),
        ),
        # Covers "which ids of a segment are live": answered without touching the rows.
        Index("ix_samples_segment_id", "segment_id", "removed_at", "id"),
        # Which are removed: few, so that no reader looks at the others.
        Index(
            "ix_samples_removed",
            "segment_id",
            "id",
            sqlite_where=text("removed_at IS NOT NULL"),
            postgresql_where=text("removed_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(_BigKey, primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(Text)
    content_hash: Mapped[str] = mapped_column(Text)
    segment_id: Mapped[int] = mapped_column(ForeignKey("segments.id"))
    n_tokens: Mapped[int] = mapped_column(Integer)
    n_scored: Mapped[int] = mapped_column(Integer)
    truncated: Mapped[bool]
    loss: Mapped[float] = mapped_column(Double)
    norm: Mapped[float] = mapped_column(Double)
    removed_at: Mapped[str | None] = mapped_column(Text)
    checksum: Mapped[str] = mapped_column(String(32))  # of all the above but segment_id, and row
    row: Mapped[str] = mapped_column(Text)  # JSON object, last: a scan of the rest stays short
