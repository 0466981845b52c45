"""A real server in a thread, at an address and at the socket of its user."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forvalue_index import InfluenceIndex
from forvalue_index.server.serve import serving


@contextmanager
def served(index: InfluenceIndex, **options: Any) -> Iterator[str]:
    """Yields the address of a server of an index."""
    notes: list[str] = []
    with serving(index, note=notes.append, **options) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            assert notes == []
            yield server.address.rstrip("/")
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive()
