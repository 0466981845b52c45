"""Brings a catalogue's schema to this version's, and says when it is not.

The scripts are in `migrations/` of the repository, which the wheel holds as
`forvalue_index/migrations`. There is no alembic.ini: `python -m forvalue_index.catalog.migrations
check` is `alembic check`, `... revision "what changes"` drafts the next script.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, String, column, inspect, select, table

from forvalue_index.catalog.engine import make_engine, place_of, reading, writing
from forvalue_index.catalog.schema import FORMAT, REVISION, Base, IndexInfoTable
from forvalue_index.errors import CorruptIndexError, IndexMissingError, SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

_NOTED = table("alembic_version", column("version_num", String))
"""Where Alembic notes the revision of a catalogue; it is read here without importing Alembic."""


def scripts_folder() -> Path:
    """Returns the folder of Alembic's env.py: in the wheel, or beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise SchemaError(f"the migrations are missing beside {package}: install the package again")


def head() -> str:
    """Returns the revision of the newest migration, which is `REVISION`."""
    from alembic.script import ScriptDirectory

    revision = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert revision is not None
    return revision


def current(connection: Connection) -> str | None:
    """Returns the revision of the catalogue of a connection; None if there is no catalogue.

    Raises:
        CorruptIndexError: several are noted.
    """
    if not inspect(connection).has_table(_NOTED.name):
        return None
    heads = connection.execute(select(_NOTED.c.version_num)).scalars().all()
    if len(heads) > 1:
        raise CorruptIndexError(
            f"the table alembic_version of {place_of(connection.engine)} has {len(heads)} "
            "revisions, but a catalogue has one: restore it from a copy, or build again"
        )
    return heads[0] if heads else None


def is_catalog(url: str | URL) -> bool:
    """Returns whether there is a catalogue of any revision at `url`, which need not exist."""
    try:
        engine = make_engine(url)
    except IndexMissingError:
        return False
    try:
        with reading(engine) as connection:
            return current(connection) is not None
    finally:
        engine.dispose()


def upgrade(url: str | URL) -> tuple[str | None, str]:
    """Runs all migrations in one transaction; returns the revisions before and after.

    Raises:
        SchemaError: the catalogue was written by a newer version of the package, or is of an index
            whose format is another.
        CorruptIndexError: a migrated row points to one that is not there.
    """
    engine = make_engine(url, create=True, foreign_keys=False)
    try:
        with writing(engine) as connection:
            before = current(connection)
            if before is not None:
                _check_known(before, engine)
                check_format(_format(connection), engine)
            upgrade_connection(connection)
            return before, head()
    finally:
        engine.dispose()


def upgrade_connection(connection: Connection) -> None:
    """Runs the missing migrations inside the caller's transaction."""
    from alembic import command

    command.upgrade(_config(connection), "head")
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        if broken:
            raise CorruptIndexError(
                f"{len(broken)} rows of {broken[0][0]} point to rows that do not exist: "
                "nothing was migrated; restore the catalogue from a copy, or build again"
            )


def check_revision(engine: Engine) -> None:
    """Checks that the catalogue has this version's schema.

    Raises:
        IndexMissingError: there is no catalogue in the database.
        SchemaError: it has another revision, older or newer; the message names both. Or its index
            has another format.
    """
    with reading(engine) as connection:
        found = current(connection)
    if found is None:
        raise IndexMissingError(
            f"no index here: {place_of(engine)} holds no catalogue. Make one with `forvalue build`"
        )
    if found == REVISION:
        return
    _check_known(found, engine)
    with reading(engine) as connection:
        check_format(_format(connection), engine)  # which no migration changes
    folder = Path(str(engine.url.database)).parent if engine.name == "sqlite" else "DIR"
    raise SchemaError(
        f"{place_of(engine)} has schema revision {found}, but this version needs {REVISION}: "
        f"run `forvalue migrate --index {folder}`"
    )


def check_format(found: Any, engine: Engine) -> None:
    """Checks the format that an index notes; None: it notes nothing yet.

    Raises:
        SchemaError: it is another one than this version's.
    """
    if found in (None, FORMAT):
        return
    older = isinstance(found, int) and found < FORMAT
    raise SchemaError(
        f"{place_of(engine)} has format {found}, but this version reads {FORMAT}, with vectors of "
        f"another form: {'' if older else 'pip install --upgrade forvalue-index, or '}build the "
        "index again, in a new directory"
    )


def _format(connection: Connection) -> Any:
    return connection.execute(select(IndexInfoTable.format)).scalar()


def _check_known(revision: str, engine: Engine) -> None:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config(None)).walk_revisions()
    if revision not in {script.revision for script in scripts}:
        raise SchemaError(
            f"{place_of(engine)} has schema revision {revision}, written by a newer version; "
            f"this one knows up to {head()}: pip install --upgrade forvalue-index"
        )


def _config(connection: Connection | None) -> Config:
    from alembic.config import Config

    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["metadata"] = Base.metadata
    return config


def main(arguments: list[str]) -> None:
    """Runs `check [URL]` or `revision MESSAGE`, for tools/check and developers.

    Raises:
        SystemExit: the tables and the migrations differ; the message says how.
    """
    from alembic import command
    from alembic.util import CommandError

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/catalog.db"
        if arguments[:1] == ["check"] and len(arguments) == 2:
            url = arguments[1]
        elif arguments != ["check"] and (arguments[:1] != ["revision"] or len(arguments) != 2):
            raise SystemExit("usage: check [URL] | revision MESSAGE")
        upgrade(url)
        engine = make_engine(url)
        try:
            with writing(engine) as connection:
                config = _config(connection)
                if arguments[0] == "check":
                    command.check(config)
                else:
                    next_id = f"{int(head()) + 1:04d}"
                    command.revision(config, arguments[1], autogenerate=True, rev_id=next_id)
        except CommandError as error:
            raise SystemExit(f"schema.py and migrations/ differ: {error}") from error
        finally:
            engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1:])
