"""How a sharded index is built piece by piece, each in a process of its own, on any machine.

    learn       : rows -> vectoriser and manifest, once
    build_shard : rows -> those of one shard, encoded and committed to it; each shard has one writer

`shards/attach.py` then says in the manifest that a shard is there.
"""

from __future__ import annotations

import logging
from contextlib import closing, suppress
from pathlib import Path

from forvalue_index.config import FormatConfig, VectorConfig
from forvalue_index.data.field_guess import format_of_rows
from forvalue_index.data.images import with_images
from forvalue_index.data.ingest import CheckedRows, Rejects, check_rows
from forvalue_index.data.notes import joined_note
from forvalue_index.data.row_keys import RowKeys
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import IndexMissingError, InputError, LockedError
from forvalue_index.pipeline.add import AddReport, add_checked, fit
from forvalue_index.pipeline.build import create, require_settings, require_shards
from forvalue_index.pipeline.open import Model, open_session
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Fidelity, Progress
from forvalue_index.shards.rows import ShardRows
from forvalue_index.shards.store import open_or_create_shard
from forvalue_index.store.layout import require_empty
from forvalue_index.store.manifest import is_sharded, parse_shard

log = logging.getLogger(__name__)


def learn(
    directory: str | Path,
    data: Data,
    model: Model,
    shards: int,
    format: FormatConfig | None,
    vector: VectorConfig | None,
    device: str | None,
    on_error: str,
    progress: Progress | None,
) -> Fidelity | None:
    """Makes a sharded index without shards; see `InfluenceIndex.learn`."""
    path = Path(directory)
    require_empty(path)
    existed, rows = path.exists(), open_rows(data)
    format = format_of_rows(rows, format)
    rows = parted(with_images(rows, format), format)
    with Rejects(on_error) as rejects:
        checked = check_rows(rows, format, rejects, progress)
        session = create(path, model, format, vector, None, device, shards, made=())
        if (note := joined_note(checked.first, format)) is not None:
            log.warning("%s", note)
        try:
            with session.store.writer.lock():
                fit(session, rows, checked.contents, rejects, progress)
            return session.store.fidelity
        except BaseException:
            with suppress(LockedError):
                session.store.destroy(itself=not existed)
            raise
        finally:
            session.close()


def build_shard(
    directory: str | Path,
    data: Data,
    shard: str,
    model: Model,
    format: FormatConfig | None,
    vector: VectorConfig | None,
    device: str | None,
    on_error: str,
    progress: Progress | None,
) -> AddReport:
    """Adds the rows of one shard to it; see `InfluenceIndex.build_shard`."""
    path = Path(directory)
    number, shards = parse_shard(shard)
    if not is_sharded(path):
        raise IndexMissingError(
            f"{path} is not an index of shards: make one with forvalue learn --shards {shards}"
        )
    require_shards(path, shards)
    rows = open_rows(data)
    with closing(open_shard_session(path, number, model, device)) as session:
        require_settings(session, format_of_rows(rows, format), vector or VectorConfig())
        own = session.config.format
        rows = parted(with_images(rows, own), own)
        return fill_shard(session, ShardRows(rows, own, number, shards), on_error, progress)


def open_shard_session(
    directory: Path, number: int, model: Model | None, device: str | None
) -> Session:
    """Returns the session of one shard, which is created if it is not there.

    Raises:
        IndexMissingError: nothing was learned yet.
    """
    store = open_or_create_shard(directory, number)
    store.close()
    return open_session(store.directory, model, device)


def fill_shard(
    session: Session,
    rows: ShardRows,
    on_error: str,
    progress: Progress | None,
    update: bool = False,
) -> AddReport:
    """Adds rows, whose images are settled, to the shard of a session."""
    with Rejects(on_error) as rejects:
        try:
            checked = check_rows(rows, session.config.format, rejects, progress)
        except InputError:
            if rows.found:
                raise
            checked = CheckedRows(RowKeys(), 0, ())  # no row happens to belong to this shard
        return add_checked(session, rows, checked, rejects, progress, update)
