"""Schema and migrations agree, and a catalogue of another revision is named and mended."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.schema import IndexInfoTable
from forvalue_index.errors import IndexMissingError, SchemaError


def _set_revision(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("UPDATE alembic_version SET version_num = ?", (revision,)).rowcount == 1
        raw.commit()


def _tables(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as raw:
        return {name for (name,) in raw.execute("SELECT name FROM sqlite_master")}


def test_schema_and_migrations_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    migrations.main(["check"])
    # It can fail:
    monkeypatch.setattr(IndexInfoTable.__table__.c.config, "nullable", True)
    with pytest.raises(SystemExit, match="config"):
        migrations.main(["check"])


def test_check_is_a_command_without_noise() -> None:
    command = [sys.executable, "-W", "error", "-m", "forvalue_index.catalog.migrations"]
    done = subprocess.run([*command, "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert subprocess.run([*command, "chekc"], capture_output=True).returncode == 1


def test_importing_the_catalogue_does_not_import_alembic() -> None:
    code = "import sys, forvalue_index.catalog.catalog; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_upgrade_from_nothing_then_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    assert migrations.upgrade(url) == (None, migrations.head())
    assert {"index_info", "segments", "samples"} <= _tables(tmp_path / "catalog.db")
    assert migrations.upgrade(url) == (migrations.head(), migrations.head())
    with pytest.raises(IndexMissingError, match="was not finished"):
        Catalog.open(url)


def test_a_newer_schema_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "catalog.db"
    Catalog.create(f"sqlite:///{file}", {}, {}).close()
    _set_revision(file, "9999")
    message = rf"catalog\.db has schema revision 9999.* knows up to {migrations.head()}.*--upgrade"
    for method in (Catalog.open, migrations.upgrade):
        with pytest.raises(SchemaError, match=message):
            method(f"sqlite:///{file}")
    _set_revision(file, migrations.head())
    Catalog.open(f"sqlite:///{file}").close()


def test_an_older_schema_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "catalog.db"
    Catalog.create(f"sqlite:///{file}", {}, {}).close()
    found = migrations.head()
    monkeypatch.setattr(migrations, "head", lambda: "0099")
    with pytest.raises(
        SchemaError,
        match=rf"revision {found}, this version needs 0099: "
        rf"run `forvalue migrate --index {tmp_path}`",
    ):
        Catalog.open(f"sqlite:///{file}")


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    run = migrations.upgrade_connection

    def fail(connection: Connection) -> None:
        run(connection)
        raise ZeroDivisionError

    monkeypatch.setattr(migrations, "upgrade_connection", fail)
    with pytest.raises(ZeroDivisionError):
        migrations.upgrade(url)
    assert _tables(tmp_path / "catalog.db") == set()
    monkeypatch.undo()
    assert migrations.upgrade(url) == (None, migrations.head())


def test_the_scripts_are_found_in_a_wheel_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (migrations.scripts_folder() / "versions").is_dir()
    wheel = tmp_path / "site-packages" / "forvalue_index"
    (wheel / "catalog").mkdir(parents=True)
    monkeypatch.setattr(migrations, "__file__", str(wheel / "catalog" / "migrations.py"))
    with pytest.raises(SchemaError, match="missing"):
        migrations.scripts_folder()
    (wheel / "migrations").mkdir()
    (wheel / "migrations" / "env.py").touch()
    assert migrations.scripts_folder() == wheel / "migrations"
