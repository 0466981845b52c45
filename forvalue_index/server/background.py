"""The page beside other work of a process, such as a notebook."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from forvalue_index.server.serve import require_server, serving

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex


class PageServer:
    """A server of the page in a thread, for this machine only.

    Use it in a `with` block or stop it. The index stays open while it works.
    """

    def __init__(self, index: InfluenceIndex, port: int, *, allow_write: bool) -> None:
        """Starts the server; see `InfluenceIndex.serve`.

        Raises:
            DependencyError: the packages of the extra `serve` are not installed.
            InputError: the port is taken.
        """
        require_server()
        self._open = ExitStack()
        server = self._open.enter_context(serving(index, port=port, allow_write=allow_write))
        self.url = server.address
        self._stop = server.stop
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the server, after the requests that it works on."""
        self._stop()
        self._thread.join()
        self._open.close()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<PageServer {self.url}>"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank" rel="noopener">Open the page: {self.url}</a>'
