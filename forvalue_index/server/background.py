"""The page beside other work of a process, such as a notebook."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from forvalue_index.errors import StorageError
from forvalue_index.server.serve import LOOPBACK, http_server, listening, require_server

if TYPE_CHECKING:
    from forvalue_index.index import InfluenceIndex

PATIENCE = 30  # seconds until the server has started


class PageServer:
    """A server of the page in a thread, for this machine only.

    Use it in a `with` block or stop it. The index stays open while it works.
    """

    def __init__(self, index: InfluenceIndex, port: int, *, allow_write: bool) -> None:
        """Starts the server; see `InfluenceIndex.serve`.

        Raises:
            DependencyError: the packages of the extra `serve` are not installed.
            InputError: the port is taken.
            StorageError: it does not start.
        """
        require_server()
        from forvalue_index.server.app import create_app
        from forvalue_index.server.guard import Admission

        self._listener = listening("127.0.0.1", port)
        app = create_app(index, Admission(set(LOOPBACK)), allow_write=allow_write)
        self._server = http_server(app)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread.start()
        until = time.monotonic() + PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                self.stop()
                raise StorageError("the server does not start: its log says why")
            time.sleep(0.01)

    def stop(self) -> None:
        """Stops the server, after the requests that it works on."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

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
