"""Schema and migrations agree, and a catalogue of another revision is named and mended."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from forvalue_index.catalog import migrations
from forvalue_index.catalog.catalog import Catalog
from forvalue_index.catalog.digests import seal_info
from forvalue_index.catalog.lock import WriterLock
from forvalue_index.catalog.rows import digest
from forvalue_index.catalog.schema import FORMAT, IndexInfoTable
from forvalue_index.errors import CorruptIndexError, IndexMissingError, LockedError, SchemaError
from forvalue_index.records import Segment
from forvalue_index.store.store import migrate


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
    monkeypatch.setattr(migrations, "REVISION", "0099")
    with pytest.raises(
        SchemaError,
        match=rf"revision {found}, but this version needs 0099: "
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


ASSETS = sorted((Path(__file__).parent / "assets" / "schema").glob("*.db"))


def _asset(asset: Path, folder: Path) -> Path:
    """A copy of an asset, as the catalogue of an index of this version's format."""
    file = folder / "catalog.db"
    shutil.copy(asset, file)
    with closing(sqlite3.connect(file)) as raw, raw:
        sealed = raw.execute("SELECT config, fingerprint, created_at FROM index_info").fetchone()
        raw.execute("UPDATE index_info SET format = ?, checksum = ?", (FORMAT, seal_info(*sealed)))
    return file


def test_every_revision_has_its_asset() -> None:
    scripts = (migrations.scripts_folder() / "versions").glob("*.py")
    assert [path.stem for path in ASSETS] == sorted(path.name[:4] for path in scripts)


@pytest.mark.parametrize("asset", ASSETS, ids=lambda path: path.stem)
def test_a_catalogue_of_every_revision_is_upgraded_and_used(
    tmp_path: Path, asset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    from make_schema_asset import CONFIG, FINGERPRINT, sample

    file = _asset(asset, tmp_path)
    url = f"sqlite:///{file}"
    if asset.stem != migrations.head():
        message = f"{asset.stem}, but this version needs {migrations.head()}: run `forvalue migrate"
        with pytest.raises(SchemaError, match=message):
            Catalog.open(url)
    assert migrate(tmp_path) == (asset.stem, migrations.head())
    with Catalog.open(url) as catalog:
        assert (catalog.config, catalog.fingerprint) == (CONFIG, FINGERPRINT)
        assert list(catalog.iterate()) == [sample(0), sample(2), sample(4)]
        snapshot = catalog.snapshot()
        assert (snapshot.count, snapshot.removed.tolist()) == (3, [1, 3])
        assert catalog.retained_energy() == {"000000000004.faiss": 0.75}
        assert catalog.check() == []
        catalog.commit_segment(Segment("new.faiss", 1, 9, "2" * 64), [sample(5)], replaces=[4])
        catalog.remove(["k2"])
        catalog.replace_segments(["000000000000.faiss", "000000000004.faiss"], _one("x.faiss"))
        catalog.vacuum()
        assert list(catalog.iterate()) == [sample(0), sample(5)]
        assert catalog.snapshot().count == 2
        assert catalog.check() == []


def test_damage_is_not_migrated(tmp_path: Path) -> None:
    file = _asset(ASSETS[1], tmp_path)
    _run(file, "UPDATE samples SET norm = 7 WHERE id = 2")
    with pytest.raises(CorruptIndexError, match=r"sample 2 .*nothing was migrated"):
        migrate(tmp_path)
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]
        raw.execute("UPDATE samples SET norm = 0.5 WHERE id = 2")
        raw.commit()
    assert migrate(tmp_path) == ("0002", migrations.head())


def test_a_zero_that_lost_its_sign_is_no_damage(tmp_path: Path) -> None:
    """Up to 0002 rows were sealed with the sign of a loss of minus zero, which SQLite drops."""
    file = _asset(ASSETS[1], tmp_path)
    values = (2, "k2", "hash2", 12, 5, False, -0.0, 0.5)
    with closing(sqlite3.connect(file)) as raw:
        (row,) = raw.execute("SELECT row FROM samples WHERE id = 2").fetchone()
        seal = digest(*map(repr, (*values, row)))
        raw.execute("UPDATE samples SET loss = -0.0, checksum = ? WHERE id = 2", (seal,))
        raw.commit()
    migrate(tmp_path)
    with Catalog.open(f"sqlite:///{file}") as catalog:
        assert catalog.check() == []
        assert catalog.samples([2])[2].loss == 0


def _run(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute(statement).rowcount == 1
        raw.commit()


def _one(name: str) -> Segment:
    return Segment(name, 1, 9, "3" * 64)


def test_migrate_waits_for_no_writer_and_needs_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="is not an index"):
        migrate(tmp_path)
    _asset(ASSETS[0], tmp_path)
    with WriterLock(tmp_path), pytest.raises(LockedError, match="is being written to by"):
        migrate(tmp_path)
