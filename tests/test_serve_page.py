"""The page in a real browser: Debian's chromium, driven by Playwright, if both are there."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.records import Row
from forvalue_index.server.app import create_app
from forvalue_index.server.guard import Admission

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

DEMO = Path(str(files("forvalue_index") / "assets" / "demo"))
ASKED = "Which instrument does Captain Puddle play? It is the"
TOKEN = "a-token-of-24-characters"
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE: list[Row] = [
    {"id": MARKUP, "prompt": MARKUP, "response": " hostile </span>", "note": MARKUP},
    {"id": "turned", "prompt": "hostile \u202egnirts\x1b[31m", "response": " hostile \x00"},
    {"id": "long", "prompt": "hostile", "response": " x" * 500_000},
    {"id": "__proto__", "prompt": "hostile", "response": " constructor", "__proto__": "own"},
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of the demo's rows and of hostile ones."""
    directory = tmp_path_factory.mktemp("served") / "index"
    format = FormatConfig(key_field="id")
    lines = (DEMO / "train.jsonl").read_text().splitlines()
    rows = [row | {"id": row["key"]} for row in map(json.loads, lines)]
    index, _ = InfluenceIndex.build(directory, rows + HOSTILE, str(DEMO / "model"), format=format)
    with index, socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(index, Admission({"127.0.0.1"}, token=TOKEN))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def faults() -> list[str]:
    """What the browser reports, and requests to other servers."""
    return []


@pytest.fixture
def page(browser: Any, address: str, faults: list[str]) -> Iterator[Any]:
    """A tab on the page; at its end there must be no faults."""
    with browser.new_context(viewport={"width": 1200, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: faults.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(address) or faults.append(asked.url))
        page.goto(f"{address}#token={TOKEN}")
        page.wait_for_selector("textarea[name=prompt]")
        yield page
        assert page.title() == "forvalue"
    assert faults == []


def ask(page: Any, prompt: str = ASKED, response: str = "") -> None:
    page.fill("textarea[name=prompt]", prompt)
    page.fill("textarea[name=response]", response)
    page.click("button:text-is('Ask')")
    page.wait_for_selector(".hits .hit")


def texts(page: Any, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def test_ask_shows_the_answer_and_what_helped_and_hurt(page: Any) -> None:
    assert TOKEN not in page.url
    ask(page)
    assert page.inner_text(".answer").strip() == "pipe organ"
    helped, hurt = page.locator(".hits section").all()
    scores = [text[0] for text in helped.locator(".head strong").all_inner_texts()]
    assert scores == ["+"] * 10
    assert {text[0] for text in hurt.locator(".head strong").all_inner_texts()} == {"−"}
    assert "pipe organ" in helped.locator(".tokens").first.inner_text()
    assert helped.locator(".tokens .help").count() >= 10
    assert helped.locator(".tokens .shared").count() >= 10


def test_marked_words_are_asked_about_alone(page: Any) -> None:
    ask(page)
    before = texts(page, ".hits .head strong")
    page.locator(".word").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.querySelector('.hits .head strong').innerText !== before", arg=before[0]
    )
    assert page.inner_text(".marked b") == "organ"
    assert texts(page, '.word[aria-pressed="true"]') == ["organ"]
    part = texts(page, ".hits .head strong")
    page.keyboard.press("Escape")
    page.wait_for_function(
        "part => document.querySelector('.hits .head strong').innerText !== part", arg=part[0]
    )
    assert texts(page, ".hits .head strong") == before


def test_a_token_shows_what_it_acted_on(page: Any) -> None:
    ask(page)
    page.click(".hit button:text-is('Token by token') >> nth=0")
    page.wait_for_selector(".pair")
    one, other = page.locator(".pair section").all()
    sums = other.locator(".tokens").inner_html()
    one.locator("[role=button]").first.focus()
    page.keyboard.press("Enter")
    assert one.locator('[aria-pressed="true"]').count() == 1
    assert other.locator(".tokens").inner_html() != sums
    page.keyboard.press("Enter")
    assert other.locator(".tokens").inner_html() == sums


def test_an_answer_of_ones_own_and_another_metric(page: Any) -> None:
    page.select_option("select[name=metric]", "hybrid")
    assert "Shared words and cosine" in page.inner_text("#metric-says")
    ask(page, response=" fiddle")
    assert page.inner_text(".answer").strip() == "fiddle"
    assert texts(page, ".hits h3") == ["Found, the best first"]
    assert "metric=hybrid" in page.url and "fiddle" in page.url
    page.reload()
    page.wait_for_selector("textarea[name=prompt]")
    assert page.input_value("textarea[name=response]") == " fiddle"
    assert page.input_value("select[name=metric]") == "hybrid"


def test_hostile_rows_are_shown_as_text(page: Any) -> None:
    page.click("nav a:text-is('Rows')")
    page.fill("input[name=words]", "hostile")
    page.click("button:text-is('Show')")
    playwright.expect(page.locator(".rows li")).to_have_count(len(HOSTILE))
    assert sorted(texts(page, ".rows .head a")) == sorted(row["id"] for row in HOSTILE)
    shown = "\n".join(texts(page, ".rows .text"))
    assert MARKUP in shown and "⟨U+202E⟩" in shown and "⟨U+001B⟩" in shown and "⟨U+0000⟩" in shown
    assert len(shown) < 5_000
    assert page.locator("main img, main script").count() == 0
    for row in HOSTILE:
        page.evaluate(
            "key => { location.hash = `#/row?key=${encodeURIComponent(key)}` }", row["id"]
        )
        page.wait_for_function(
            "key => document.querySelector('h2 .key')?.textContent === key", arg=row["id"]
        )
        assert "What the index keeps of it" in page.inner_text("main")
        assert page.locator("main img, main script").count() == 0
    ask_for = "#/ask?prompt=" + "hostile"
    page.evaluate("hash => { location.hash = hash }", ask_for)
    page.wait_for_selector("textarea[name=response]")
    ask(page, prompt=MARKUP, response=" hostile " + MARKUP)
    assert page.inner_text(".answer").strip().endswith(MARKUP)
    assert page.locator("main img, main script").count() == 0


def test_filters_and_errors_say_what_to_do(page: Any, faults: list[str]) -> None:
    page.click("nav a:text-is('Rows')")
    page.wait_for_selector(".rows li")
    rows = [*map(json.loads, (DEMO / "train.jsonl").read_text().splitlines())]
    person = rows[0]["person"]
    keys = [r["key"] for r in rows if (r["person"], r["field"]) == (person, "pudding")]
    page.fill("textarea[name=where]", f"person={person}\nfield=pudding")
    page.click("button:text-is('Show')")
    playwright.expect(page.locator(".rows li")).to_have_count(len(keys))
    assert texts(page, ".rows .head a") == keys
    page.fill("textarea[name=where]", "field=none")
    page.click("button:text-is('Show')")
    page.wait_for_selector(".empty")
    assert faults == []
    page.fill("textarea[name=where]", "nothing=1")
    page.click("button:text-is('Show')")
    page.wait_for_selector("#status.wrong")
    assert "the fields are" in page.inner_text("#status")
    assert page.input_value("textarea[name=where]") == "nothing=1"
    assert len(faults) == 1 and "422" in faults.pop()


def test_about_and_every_width(page: Any) -> None:
    ask(page)
    for width in (1200, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        for view in ("Ask", "Rows", "About"):
            page.click(f"nav a:text-is('{view}')")
            page.wait_for_selector("main > *")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
    assert "1,084" in page.inner_text(".facts")
    assert "What it does not say" in page.inner_text("main")
