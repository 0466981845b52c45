"""The page of the server in a real browser: Debian's chromium, if it and Playwright are there."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from forvalue_index import InfluenceIndex
from forvalue_index.server.app import create_app
from forvalue_index.server.guard import Admission

WAIT = 60_000  # milliseconds; the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser, closed with its module: while it runs, its event loop is the thread's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright.expect.set_options(timeout=WAIT)
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def served(
    index: InfluenceIndex, token: str | None = None, *, allow_write: bool = False
) -> Iterator[str]:
    """The address of a server of an open index."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(index, Admission({"127.0.0.1"}, token=token), allow_write=allow_write)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


class Tab:
    """A tab on the page; what the browser reports, and requests to other servers, are faults."""

    def __init__(self, page: Any, address: str, pictures: Path) -> None:
        self.page = page
        self.address = address
        self.pictures = pictures
        self.faults: list[str] = []
        self.refused: list[int] = []  # statuses of answers that are errors
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", lambda asked: self._note(asked.url))
        page.on("response", lambda answer: self._refused(answer.status))

    def _refused(self, status: int) -> None:
        if status >= 400:
            self.refused.append(status)

    def _note(self, url: str) -> None:
        if not url.startswith((self.address, f"blob:{self.address}")):
            self.faults.append(url)

    def go(self, hash: str) -> None:
        """Goes to another view."""
        self.page.evaluate("hash => { location.hash = hash }", hash)

    def texts(self, selector: str) -> list[str]:
        """The texts of elements, of those that are not in sight, too."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    def check(self, name: str) -> None:
        """Takes a picture; checks that axe finds nothing and nothing went wrong."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
        self.page.screenshot(path=self.pictures / f"{name}.png")
        assert (self.pictures / f"{name}.png").stat().st_size > 1000
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            found = axe.Axe().run(self.page).response["violations"]
            faults = [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found]
            assert faults == [], f"{name}, {scheme}"
        self.page.emulate_media(color_scheme="light")
        assert self.page.locator("main img[src^='http'], main script").count() == 0
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        self.require_none()

    def require_none(self) -> None:
        """Checks that there is no fault, and that no markup has run."""
        assert self.page.title() == "forvalue"
        assert self.faults == []

    def take(self, status: int) -> None:
        """Takes what the browser reports of answers that are errors, all with this status.

        It reports them a moment after the page has got them.
        """
        end = time.monotonic() + WAIT / 1000
        while not self.refused or len(self.faults) < len(self.refused):
            assert time.monotonic() < end, (self.refused, self.faults)
            self.page.wait_for_timeout(20)
        assert set(self.refused) == {status}
        assert len(self.faults) == len(self.refused)
        assert all(str(status) in fault for fault in self.faults)
        self.refused.clear()
        self.faults.clear()


@contextmanager
def tab(
    browser: Any, address: str, pictures: Path, token: str | None = None, width: int = 1280
) -> Iterator[Tab]:
    """A tab on the page; at its end there must be no faults."""
    size = {"width": width, "height": 900}
    with browser.new_context(viewport=size, reduced_motion="reduce") as context:
        opened = Tab(context.new_page(), address, pictures)
        opened.page.goto(address if token is None else f"{address}#token={token}")
        opened.page.wait_for_selector("textarea[name=prompt]")
        yield opened
        opened.require_none()


def saved(tab: Tab, button: str) -> str:
    """The text of the file that a button saves."""
    with tab.page.expect_download() as download:
        tab.page.click(f"button:text-is('{button}')")
    return Path(download.value.path()).read_text(encoding="utf-8")


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Waits until JavaScript holds: by looking again, since the policy of the page forbids eval."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, expression
        time.sleep(0.05)
