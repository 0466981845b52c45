"""How an index is created and built.

create : settings, model -> an empty store, and the session that fills it
build  : create, or open what an interrupted build left, then add
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from forvalue_index.catalog.address import name_catalog, parse_url, shown
from forvalue_index.config import FormatConfig, IndexConfig, ModelConfig, VectorConfig
from forvalue_index.data.field_guess import format_of_rows
from forvalue_index.data.formatter import settled
from forvalue_index.data.images import with_images
from forvalue_index.data.ingest import Rejects, check_rows
from forvalue_index.data.notes import instruct_note, joined_note
from forvalue_index.data.sources import Data, open_rows
from forvalue_index.data.token_rows import parted
from forvalue_index.errors import IndexMissingError, InputError, LockedError
from forvalue_index.field_types import require_class
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.pipeline.add import AddReport, add_checked
from forvalue_index.pipeline.open import Model, known, open_session
from forvalue_index.pipeline.session import Session, fingerprint
from forvalue_index.pipeline.workers import settle_devices
from forvalue_index.records import Progress
from forvalue_index.shards.store import create as create_shards
from forvalue_index.store.layout import is_index, require_empty, url_of
from forvalue_index.store.manifest import is_sharded, read_manifest
from forvalue_index.store.store import Store

log = logging.getLogger(__name__)


def create(
    directory: str | Path,
    model: Model,
    format: FormatConfig | None,
    vector: VectorConfig | None,
    catalog: str | None,
    device: str | None,
    shards: int | None = None,
    made: Iterable[int] | None = None,
) -> Session:
    """Makes an empty index and returns its session; see `InfluenceIndex.create`.

    `made` are the shards to make now; default: all.
    """
    path = Path(directory)
    if catalog is not None:
        _require_whole(shards)
        name_catalog(catalog)
    require_class(format, FormatConfig)
    require_class(vector, VectorConfig)
    require_empty(path)
    model = known(model)
    if isinstance(model, LanguageModel):
        lm, settings = model, ModelConfig(model.name)
    else:
        settings = found_from_anywhere(model)
        lm = load_model(settings, device)
    format = format or FormatConfig()
    if (note := instruct_note(lm.tokenizer, format)) is not None:
        log.warning("%s", note)
    format = settled(format, lm.tokenizer, lm.max_length(format.max_length))
    config = IndexConfig(settings, format, vector or VectorConfig())
    if shards is None:
        store = Store.create(path, config, fingerprint(config, lm), catalog)
    else:
        store = create_shards(path, config, fingerprint(config, lm), shards, made)
    session = Session(store, config, device)
    session.adopt(lm, given=isinstance(model, LanguageModel))
    return session


def build(
    directory: str | Path,
    data: Data,
    model: Model,
    format: FormatConfig | None,
    vector: VectorConfig | None,
    catalog: str | None,
    device: str | None,
    devices: str | Sequence[str | int] | None,
    on_error: str,
    progress: Progress | None,
    shards: int | None = None,
) -> tuple[Session, AddReport]:
    """Makes an index of data, or continues with it; see `InfluenceIndex.build`."""
    names = settle_devices(devices) if devices is not None else []
    if names and device is not None:
        raise InputError("give a device or devices, not both")
    device = names[0] if names else device
    path = Path(directory)
    if catalog is not None:
        _require_whole(shards)
        name_catalog(catalog)
    existed, new = path.exists(), not is_index(path)
    if new:
        require_empty(path)
    rows = open_rows(data)
    format, vector = format_of_rows(rows, format), vector or VectorConfig()
    rows = parted(with_images(rows, format), format)
    with Rejects(on_error) as rejects:
        if new:  # the rows are checked before the model takes its time and memory
            checked = check_rows(rows, format, rejects, progress)
            session = create(path, model, format, vector, catalog, device, shards)
            if (note := joined_note(checked.first, format)) is not None:
                log.warning("%s", note)
        else:
            _require_catalog(path, catalog)
            require_shards(path, shards)
            session = open_session(path, model, device)
        try:
            if not new:
                require_settings(session, format, vector)
                rows = with_images(open_rows(data), session.config.format)
                rows = parted(rows, session.config.format)
                checked = check_rows(rows, session.config.format, rejects, progress)
            if names:
                session.move(names[0])
            if not new:
                with session.store.writer.lock():  # refused before the model is loaded
                    pass
            session.load()  # also where no row is missing: it may be another model
            report = add_checked(session, rows, checked, rejects, progress, devices=names)
            return session, report
        except BaseException:
            if new:
                with suppress(LockedError):  # another process has begun to fill it
                    session.store.destroy(itself=not existed)
            session.close()
            raise


def require_settings(session: Session, format: FormatConfig, vector: VectorConfig) -> None:
    """Checks that a build that is continued was begun with the same settings.

    Raises:
        IndexMissingError: it was not; the message names those that differ.
    """
    found = asdict(session.config.format) | asdict(session.config.vector)
    wanted = asdict(format) | asdict(vector)
    for name in ("max_length", "chat_template"):  # settled at creation
        if wanted[name] is None:
            wanted[name] = found[name]
    wanted["form"] = found["form"]  # an index keeps its own
    differing = [f"{name}: {found[name]}" for name in wanted if wanted[name] != found[name]]
    if differing:
        raise IndexMissingError(
            f"{session.store.directory} holds an index made with other settings "
            f"({', '.join(differing)}): choose a new directory"
        )


def _require_catalog(directory: Path, catalog: str | None) -> None:
    """Checks that a build that is continued was begun with the same catalogue, if one is named.

    Raises:
        IndexMissingError: it was not.
    """
    found = shown(parse_url(url_of(directory)))
    if catalog is not None and (place := shown(parse_url(catalog))) != found:
        raise IndexMissingError(
            f"{directory} keeps its rows in {found}, not in {place}: choose a new directory"
        )


def require_shards(directory: Path, shards: int | None) -> None:
    """Checks that a build that is continued was begun with as many shards, if these are given.

    Raises:
        IndexMissingError: it was not.
    """
    found = read_manifest(directory).shards if is_sharded(directory) else None
    if shards is not None and shards != found:
        held = f"{found} shards" if found else "an index that is not sharded"
        raise IndexMissingError(
            f"{directory} holds {held}, not {shards} shards: choose a new directory, or "
            "leave out shards"
        )


def _require_whole(shards: int | None) -> None:
    if shards is not None:
        raise InputError("each shard keeps its rows in SQLite: give a catalog or shards, not both")


def found_from_anywhere(model: ModelConfig) -> ModelConfig:
    """Returns how to read a model, for whoever reads it from another working directory."""
    names = tuple(map(_resolved, model.adapters))
    return replace(model, name=_resolved(model.name), adapters=names)


def _resolved(name: str) -> str:
    """Returns the whole path of what is here; an id on the hub stays as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name
