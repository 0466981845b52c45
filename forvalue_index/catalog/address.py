"""Which catalogues on servers this user has named on this machine.

An index directory may come from somebody else, and so may the URL in it. A connection to a server,
which may be handed the user's own credentials, is made only to a URL that the user has named: to
`build`, which keeps it in CONFIG/forvalue/catalogs, or in the variable FORVALUE_CATALOG. All of the
URL but its password has to be the same: whatever is in it may decide where it leads.
"""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from forvalue_index.errors import InputError, StorageError, masked
from forvalue_index.system.remembered import remember, remembered

VARIABLE = "FORVALUE_CATALOG"
LIST = "catalogs"
_HOW = "write postgresql+psycopg://user@host/name"


def parse_url(url: str | URL) -> URL:
    """Returns a database URL in its parts.

    Raises:
        InputError: it is none; what it is stays out of the message, it may hold a password.
    """
    try:
        parsed = make_url(url)
        parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise InputError(f"the catalogue's URL cannot be read: {_HOW}") from None
    return parsed


def server_url(url: str | URL) -> URL:
    """Returns the URL of a database on a server in its parts.

    Raises:
        InputError: it is none, or not of PostgreSQL.
    """
    parsed = parse_url(url)
    backend = parsed.get_backend_name()
    if backend != "postgresql":
        raise InputError(f"the URL of a catalogue names PostgreSQL, not {backend!r}: {_HOW}")
    return parsed


def shown(url: URL) -> str:
    """Returns a URL without its passwords."""
    secret = [name for name in url.query if masked(f"{name}=?") != f"{name}=?"]
    return url._replace(password=None).difference_update_query(secret).render_as_string()


def name_catalog(url: str | URL) -> None:
    """Remembers that this user has named a catalogue's URL on this machine.

    Raises:
        InputError: it is not a URL of PostgreSQL.
        StorageError: the file that remembers cannot be written.
    """
    place = shown(server_url(url))
    named = _named()
    if place in named:
        return
    try:
        remember(LIST, [place])
    except OSError as error:
        raise StorageError(
            f"{error.filename or 'the file'}, which remembers the catalogues that you named, "
            f"cannot be written ({error.strerror or error}): set {VARIABLE} to the URL instead"
        ) from error


def require_named(url: str, source: Path) -> URL:
    """Returns the URL that stands in a file of an index, once this user has named it.

    Raises:
        InputError: it is not a URL of PostgreSQL, or the user has not named it.
    """
    parsed = server_url(url)
    place = shown(parsed)
    if place not in _named():
        raise InputError(
            f"{source} leads to {place}, which you have not named on this machine, so nothing "
            f"was connected: if you know this server, set {VARIABLE} to this URL"
        )
    return parsed


def _named() -> set[str]:
    given = os.environ.get(VARIABLE, "").split()
    return {shown(server_url(url)) for url in given} | set(remembered(LIST))
