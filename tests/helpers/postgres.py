"""A PostgreSQL server for the tests: its own cluster in a temporary folder, gone at the end."""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACES = *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), None  # noqa: PTH207


def missing() -> str | None:
    """Why there can be no server here; None if there can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install forvalue-index[postgres]"
    if _program("initdb") is None or _program("pg_ctl") is None:
        return "no PostgreSQL server is installed: apt-get install postgresql"
    return None


@contextmanager
def server() -> Iterator[str]:
    """Gives the URL of a running server's first database, without a password."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path is at most 107 bytes
    # It refuses to be run by root.
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    os.chown(folder, user.pw_uid, user.pw_gid)
    identity = {"user": user.pw_uid, "group": user.pw_gid} if os.getuid() == 0 else {}

    def run(program: str, *arguments: str) -> None:
        command = [str(_program(program)), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=folder, extra_groups=None, **identity
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    try:
        run("initdb", "-D", f"{folder}/data", "-U", "tester", "-A", "trust", "-E", "UTF8", "-N")
        # No port; and what is written need not outlive the machine.
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=50"
        logs = ("-l", f"{folder}/log", "-o", options, "-w")
        run("pg_ctl", "start", "-D", f"{folder}/data", *logs)
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            run("pg_ctl", "stop", "-D", f"{folder}/data", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_numbers = itertools.count()


@contextmanager
def database(url: str) -> Iterator[str]:
    """Gives the URL of a new and empty database on the server of `url`.

    It is deleted in the end, whoever still has it open: each takes 10 MB.
    """
    name = f"test{next(_numbers)}"
    _execute(url, f"CREATE DATABASE {name}")
    try:
        yield url.replace("/postgres?", f"/{name}?")
    finally:
        _execute(url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


def _program(name: str) -> str | None:
    return next(filter(None, (shutil.which(name, path=place) for place in PLACES)), None)
