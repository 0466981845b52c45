"""Writes docs/page.png: what `forvalue serve` shows of the demo's index, in a browser.

Needs `pip install "forvalue-index[serve]" playwright`, and chromium on the path.

    python tools/make_picture.py
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from importlib.resources import files
from pathlib import Path

import click
import uvicorn
from playwright.sync_api import sync_playwright

from forvalue_index import InfluenceIndex
from forvalue_index.server.app import create_app
from forvalue_index.server.guard import Admission

DEMO = Path(str(files("forvalue_index") / "assets" / "demo"))
PAGE = Path(__file__).parent.parent / "docs" / "page.png"
ASKED = "Which instrument does Captain Puddle play? It is the"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=PAGE, show_default=True)
def main(output: Path) -> None:
    """Ask the demo's model in a browser, and take a picture.

    Example: python tools/make_picture.py
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise click.ClickException("there is no chromium on the path: install it")
    with (
        tempfile.TemporaryDirectory() as folder,
        InfluenceIndex.build(f"{folder}/index", DEMO / "train.jsonl", DEMO / "model")[0] as index,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        app = create_app(index, Admission({"127.0.0.1"}))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            take(chromium, f"http://127.0.0.1:{listener.getsockname()[1]}/", output)
        finally:
            server.should_exit = True
            thread.join()
    print(output)


def take(chromium: str, address: str, output: Path) -> None:
    """Writes a picture of the page once the hits are there."""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(address)
        page.fill("textarea[name=prompt]", ASKED)
        page.get_by_role("button", name="Ask the model").click()
        page.locator(".hit .tokens .help").nth(1).click(timeout=120_000)
        page.locator(".pair").wait_for(timeout=120_000)
        page.locator("#status:empty").wait_for(state="attached")
        page.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    main()
