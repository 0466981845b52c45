"""The page's Rows, Value, Review and About, and that it is quick."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Tab, saved, served, tab
from helpers.cli import run_well

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.records import Row

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import TimeoutError as Overtime
from playwright.sync_api import expect

DEMO = Path(str(files("forvalue_index") / "assets" / "demo"))


def lines(name: str) -> list[Row]:
    return [*map(json.loads, (DEMO / name).read_text().splitlines())]


ROWS = lines("train.jsonl")[:160]
WRONG = "demo-00004"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluenceIndex]:
    """160 rows of the demo, one of which has the response of another."""
    rows = [row | ({"response": " pipe organ"} if row["key"] == WRONG else {}) for row in ROWS]
    format = FormatConfig(key_field="key")
    directory = tmp_path_factory.mktemp("served") / "index"
    with InfluenceIndex.build(directory, rows, str(DEMO / "model"), format=format)[0] as index:
        yield index


@pytest.fixture(scope="module")
def address(index: InfluenceIndex) -> Iterator[str]:
    with served(index, allow_write=True) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str, tmp_path: Path) -> Iterator[Tab]:
    with tab(browser, address, tmp_path) as opened:
        yield opened


def test_rows_are_found_by_words_and_fields_and_saved(page: Tab) -> None:
    page.go("#/rows")
    expect(page.page.locator(".rows > li")).to_have_count(50)
    page.page.click("button:text-is('More rows')")
    expect(page.page.locator(".rows > li")).to_have_count(100)
    assert page.texts(".rows .head a") == [row["key"] for row in ROWS[:100]]
    page.check("rows")
    page.page.click("summary:text-is('Filter')")
    page.page.locator(".facets section[aria-label=field] .value", has_text="pet").click()
    pets = [row["key"] for row in ROWS if row["field"] == "pet"]
    expect(page.page.locator(".rows > li")).to_have_count(len(pets))
    page.page.reload()
    expect(page.page.locator(".rows > li")).to_have_count(len(pets))
    assert [json.loads(line)["key"] for line in saved(page, "JSON lines").splitlines()] == pets
    table = csv.DictReader(io.StringIO(saved(page, "CSV").removeprefix("\ufeff")))
    assert [row["key"] for row in table] == pets
    page.page.fill("input[name=words]", "zebra-crossing")
    page.page.click("button:text-is('Show')")
    page.page.wait_for_selector(".pages .empty")
    page.page.click("button:text-is('Show all rows')")
    expect(page.page.locator(".rows > li")).to_have_count(50)


def test_a_row_has_neighbours_and_what_it_helps_and_hurts(page: Tab, index: InfluenceIndex) -> None:
    row = ROWS[1]
    page.go(f"#/row?key={row['key']}")
    asked: dict[str, dict[str, Any]] = {
        "Neighbours": {"metric": "cosine"},
        "Helps": {},
        "Hurts": {"opponents": True},
    }
    for name, how in asked.items():
        page.page.click(f".tabs button:text-is('{name}')")
        page.page.wait_for_selector(f".tabs [aria-pressed=true]:text-is('{name}')")
        page.page.wait_for_selector(".near li")
        hits = index.query({n: row[n] for n in ("prompt", "response")}, k=11, **how)
        expected = [hit.key for hit in hits if hit.key != row["key"]][:10]
        expect(page.page.locator(".near .key").first).to_have_text(expected[0])
        assert page.texts(".near .key") == expected
        page.check(name)
    page.page.click("text=Which rows drove this response?")
    page.page.wait_for_selector(".hits .hit")
    assert page.page.inner_text(".answer").strip() == row["response"].strip()


def test_the_value_of_rows_by_source(page: Tab, index: InfluenceIndex) -> None:
    targets = [{n: row[n] for n in ("prompt", "response")} for row in lines("questions.jsonl")[:4]]
    page.go("#/value")
    page.page.click("button:text-is('Value the rows')")
    page.page.wait_for_selector("#status.wrong")
    assert "at least one target" in page.page.inner_text("#status")
    page.page.fill("textarea[name=targets]", "no JSON")
    page.page.click("button:text-is('Value the rows')")
    page.page.wait_for_selector("#status:text-matches('Line 1 is not JSON')")
    page.page.fill("textarea[name=targets]", "\n".join(map(json.dumps, targets)))
    page.page.select_option("select[name=group_by]", "field")
    page.page.click("button:text-is('Value the rows')")
    page.page.wait_for_selector("svg.plot")
    found = index.score(targets, k=10, group_by="field")
    assert page.texts("table.figures tbody th") == [group.name for group in found.groups]
    assert page.page.locator("svg.plot rect").count() == len(found.groups)
    best, worst = (page.texts(f".hits section >> nth={place} >> .key") for place in (0, 1))
    assert best == [row["key"] for row in found.best]
    assert worst == [row["key"] for row in found.worst]
    page.check("value")
    page.page.reload()
    page.page.wait_for_selector("svg.plot")
    values = [json.loads(line) for line in saved(page, "JSON lines").splitlines()]
    assert [row["key"] for row in values] == [row["key"] for row in found.rows()]
    assert len(saved(page, "CSV").splitlines()) == 1 + len(ROWS)
    page.go("#/value?job=none")
    page.page.wait_for_selector("#status.wrong")
    assert "start it again" in page.page.inner_text("#status")
    page.take(404)


def test_suspects_are_worked_through_by_keyboard(
    page: Tab, index: InfluenceIndex, tmp_path: Path
) -> None:
    page.go("#/review")
    page.page.wait_for_selector("text=Look for suspects")
    page.check("before")
    page.page.click("button:text-is('Look for suspects')")
    page.page.wait_for_selector(".bench")
    suspects = page.page.locator("button.suspect")
    n, key = suspects.count(), page.page.locator(".detail .key").first
    assert n > 3 and len(page.texts(".reasons li")) >= 1
    page.check("suspects")
    first = key.text_content()
    page.page.keyboard.press("n")
    page.page.wait_for_selector(".near li")
    page.page.keyboard.press("d")
    expect(suspects.nth(0).locator(".mark")).to_have_text("drop")
    expect(key).not_to_have_text(first or "")
    second = key.text_content()
    page.page.keyboard.press("k")
    expect(suspects.nth(1).locator(".mark")).to_have_text("keep")
    page.page.keyboard.press("u")
    expect(suspects.nth(1).locator(".mark")).to_have_text("")
    expect(key).to_have_text(second or "")
    page.page.keyboard.press("f")
    page.page.locator(".fix-form textarea").last.fill(" put right")
    page.check("fix")
    page.page.click("button:text-is('Save the fix')")
    expect(suspects.nth(1).locator(".mark")).to_have_text("fix")
    page.page.keyboard.press("ArrowUp")
    expect(key).to_have_text(second or "")
    page.page.reload()
    expect(suspects.nth(1).locator(".mark")).to_have_text("fix")
    assert "1 drop, 1 fix" in page.page.inner_text(".bench")
    drop, fix = index.directory / "review" / "drop.txt", index.directory / "review" / "fix.jsonl"
    assert saved(page, "drop.txt") == drop.read_text() == f"{first}\n"
    assert json.loads(saved(page, "fix.jsonl"))["response"] == " put right"
    assert len(saved(page, "JSON lines").splitlines()) == n
    where = ("--index", index.directory)
    run_well("remove", "--keys-file", drop, *where)
    run_well("add", fix, "--update", *where)
    assert len(index) == len(ROWS) - 1
    assert index.get(second or "").row["response"] == " put right"


def test_decisions_stay_in_the_browser_if_the_server_only_reads(
    browser: Any, index: InfluenceIndex, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in index.directory.rglob("*.txt")}
    with served(index) as address, tab(browser, address, tmp_path) as page:
        page.go("#/review")
        page.page.click("button:text-is('Look for suspects')")
        page.page.wait_for_selector(".bench")
        assert "stay in this browser" in page.page.inner_text(".bench")
        at = page.page.locator("button.suspect:not(:has(.mark.drop, .mark.fix))").first
        at.click()
        key = page.page.locator(".detail .key").first.text_content() or ""
        page.page.keyboard.press("d")
        page.page.wait_for_selector("button.suspect .mark.drop")
        page.page.reload()
        page.page.wait_for_selector("button.suspect .mark.drop")
        assert key in saved(page, "drop.txt").splitlines()
    assert before == {path: path.stat().st_mtime_ns for path in index.directory.rglob("*.txt")}


PRESSED = """keys => {
  for (const key of keys) {
    document.querySelector(".bench").dispatchEvent(new KeyboardEvent("keydown", { key }));
  }
}"""


def test_keys_that_are_pressed_at_once_decide_one_row_after_the_other(
    browser: Any, index: InfluenceIndex, tmp_path: Path
) -> None:
    with served(index) as address, tab(browser, address, tmp_path) as page:
        page.go("#/review")
        page.page.click("button:text-is('Look for suspects')")
        page.page.wait_for_selector(".bench")
        marks = page.page.locator("button.suspect .mark")
        free = [place for place, text in enumerate(marks.all_text_contents()) if not text][:3]
        page.page.locator("button.suspect").nth(free[0]).click()
        page.page.evaluate(PRESSED, ["d", "k", "d"])
        for place, decision in zip(free, ("drop", "keep", "drop"), strict=True):
            expect(marks.nth(place)).to_have_text(decision)


def test_the_number_of_rows_is_that_of_now(browser: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} rows", "response": f" say {n}"} for n in range(40)]
    made, _ = InfluenceIndex.build(tmp_path / "index", rows, str(DEMO / "model"))
    with made as index, served(index) as address, tab(browser, address, tmp_path) as page:
        expect(page.page.locator("#what")).to_have_text("40 training rows of model")
        index.remove([next(iter(index.rows())).key])
        page.go("#/about")
        page.page.wait_for_selector("text=What it does not say")
        expect(page.page.locator("#what")).to_have_text("39 training rows of model")


def test_a_job_is_cancelled(page: Tab) -> None:
    for _ in range(5):  # a small audit may have ended before the click
        page.go("#/about")
        page.go("#/review")
        page.page.wait_for_selector("summary:text-is('New audit')")
        page.page.wait_for_load_state("networkidle")
        page.page.eval_on_selector_all("details", "all => all.forEach(one => (one.open = true))")
        with suppress(Overtime):
            page.page.click("button:text-is('Look for suspects')", timeout=2000)
            page.page.click(".job button:text-is('Cancel')", timeout=2000)
            page.page.wait_for_selector("#status.wrong", timeout=5000)
            break
    assert "Cancelled" in page.page.inner_text("#status")


def test_about_and_every_width(browser: Any, address: str, tmp_path: Path) -> None:
    for width in (390, 320):
        with tab(browser, address, tmp_path, width=width) as page:
            for view in ("Ask", "Rows", "Value", "Review", "About"):
                page.page.click(f"nav a:text-is('{view}')")
                page.page.wait_for_selector(f"main.{view.lower()} > :nth-child(2)")
                page.page.wait_for_load_state("networkidle")
                page.check(f"{view}-{width}")
            assert "What it does not say" in page.page.inner_text("main")
            named = {row["name"] for row in csv.DictReader(io.StringIO(saved(page, "CSV")))}
            assert {"training rows", "model", "fingerprint"} <= named
            assert json.loads(saved(page, "JSON"))["config"]["vector"]["recipe"] == "balanced"


def test_a_view_has_a_heading_while_it_loads_and_when_there_is_nothing(page: Tab) -> None:
    held: list[Any] = []
    page.page.route("**/api/info*", lambda route: held.append(route))
    page.go("#/review")
    expect(page.page.locator("nav a[aria-current]")).to_have_text("Review")
    page.check("loading")
    page.page.wait_for_timeout(100)
    assert page.texts("main > *") == ["Review"]
    for route in held:
        route.continue_()
    page.page.unroute("**/api/info*")
    page.page.wait_for_selector("text=Look for suspects")

    page.go("#/row?key=none-such")
    page.page.wait_for_selector("#status.wrong")
    page.take(404)
    page.check("nothing")
    assert page.texts("main > *") == ["Row", "There is nothing to show."]

    page.go("#/constructor")
    page.page.wait_for_selector("textarea[name=prompt]")


SCROLL = """async () => {
  let frames = 0;
  for (let y = 0; y < document.documentElement.scrollHeight && frames < 200; y += 400, frames++) {
    scrollTo(0, y);
    await new Promise(requestAnimationFrame);
  }
  return frames;
}"""
WORK = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
FRAME = 1 / 60  # seconds


def test_the_page_is_useful_at_once_and_scrolls_a_thousand_hits(
    browser: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n} rows say", "response": f" word {n % 7}"} for n in range(1100)]
    made, _ = InfluenceIndex.build(tmp_path / "index", rows, str(DEMO / "model"))
    with made as index, served(index) as address, tab(browser, address, tmp_path) as page:
        page.page.goto("about:blank")
        page.page.goto(address)
        page.page.wait_for_selector("textarea[name=prompt]")
        useful = page.page.evaluate("performance.now()")
        link = "#/ask?k=1000&own=1&prompt=3+rows+say&response=+word+3"
        page.go(link)
        page.page.wait_for_selector(".hits .hit >> nth=900", state="attached")
        tools = page.page.context.new_cdp_session(page.page)
        tools.send("Performance.enable", {"timeDomain": "threadTicks"})

        def spent() -> dict[str, float]:
            found = tools.send("Performance.getMetrics")["metrics"]
            return {each["name"]: each["value"] for each in found}

        before = spent()
        frames = page.page.evaluate(SCROLL)
        after = spent()
    each = {name: (after[name] - before[name]) / frames for name in (*WORK, "TaskDuration")}
    print(
        f"useful after {useful:.0f} ms; {frames} frames: script, style and layout "
        f"{1000 * sum(each[name] for name in WORK):.1f} ms, with painting "
        f"{1000 * each['TaskDuration']:.1f} ms of processor time each"
    )
    assert useful < 10_000  # of a busy machine
    assert sum(each[name] for name in WORK) < FRAME
