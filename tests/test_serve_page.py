"""The page's Ask: the answer, its marked words, the rows behind it, and what acted on what."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Tab, saved, served, tab, until

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.records import Row

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

DEMO = Path(str(files("forvalue_index") / "assets" / "demo"))
ASKED = "Which instrument does Captain Puddle play? It is the"
TOKEN = "a-token-of-24-characters"
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
HOSTILE: list[Row] = [
    {"id": MARKUP, "prompt": MARKUP, "response": " hostile </span>", "note": MARKUP},
    {"id": "turned", "prompt": "hostile \u202egnirts\x1b[31m", "response": " hostile \x00"},
    {
        "id": "right to left",
        "prompt": "hostile \u0634\u0643\u0631\u0627",
        "response": " \u05d0\u05d1",
    },
    {"id": "long", "prompt": "hostile", "response": " x" * 500_000},
    {"id": "__proto__", "prompt": "hostile", "response": " constructor", "__proto__": "own"},
]
HELPED, HURT = ".hits section >> nth=0", ".hits section >> nth=1"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    lines = (DEMO / "train.jsonl").read_text().splitlines()
    return [row | {"id": row["key"]} for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Iterator[str]:
    """The address of a server of the demo's rows and of hostile ones."""
    directory = tmp_path_factory.mktemp("served") / "index"
    format = FormatConfig(key_field="id")
    index, _ = InfluenceIndex.build(directory, rows + HOSTILE, str(DEMO / "model"), format=format)
    with index, served(index, TOKEN) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str, tmp_path: Path) -> Iterator[Tab]:
    with tab(browser, address, tmp_path, TOKEN) as opened:
        yield opened


def ask(page: Tab, prompt: str = ASKED, response: str = "") -> None:
    page.page.fill("textarea[name=prompt]", prompt)
    if response:
        page.page.click("summary:text-is('Your own answer, and options')")
        page.page.fill("textarea[name=response]", response)
    page.page.click("button:text-is('Ask the model')")
    page.page.wait_for_selector(".hits .hit")


def scores(page: Tab) -> list[str]:
    return page.texts(".hits .head strong")


def until_others(page: Tab, before: list[str]) -> None:
    """Waits until other hits are shown."""
    until(
        page.page,
        "before => { const now = [...document.querySelectorAll('.hits .head strong')]"
        ".map(e => e.textContent); return now.length && now.join() !== before.join() }",
        arg=before,
    )


def test_ask_shows_the_answer_and_what_helped_and_hurt(page: Tab) -> None:
    page.check("empty")
    assert TOKEN not in page.page.url
    ask(page)
    assert page.page.inner_text(".answer").strip() == "pipe organ"
    assert {score[0] for score in page.texts(f"{HELPED} >> .head strong")} == {"+"}
    assert {score[0] for score in page.texts(f"{HURT} >> .head strong")} == {"−"}
    helped = page.page.locator(HELPED)
    assert "pipe organ" in helped.locator(".tokens").first.text_content()
    assert helped.locator(".tokens .help").count() >= 10
    assert helped.locator(".tokens .shared").count() >= 10
    bars = helped.locator(".bar").evaluate_all("all => all.map(b => b.style.cssText.slice(9, -1))")
    shares = [float(share) for share in bars]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    page.check("asked")


def test_marked_words_are_asked_about_alone(page: Tab) -> None:
    ask(page)
    whole = scores(page)
    page.page.locator(".word").first.focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    until_others(page, whole)
    assert page.page.inner_text(".marked b") == "organ"
    assert page.texts('.word[aria-pressed="true"]') == ["organ"]
    assert "part=6-11" in page.page.url
    page.check("marked")
    organ = scores(page)
    page.page.reload()  # the link alone
    page.page.wait_for_selector(".hits .hit")
    assert scores(page) == organ and page.page.inner_text(".marked b") == "organ"
    page.page.click("button:text-is('the whole answer')")
    until_others(page, organ)
    assert scores(page) == whole
    first, last = (page.page.locator(".word").nth(place).bounding_box() for place in (0, 1))
    page.page.mouse.move(first["x"] + 2, first["y"] + 8)
    page.page.mouse.down()
    page.page.mouse.move(last["x"] + last["width"] - 2, last["y"] + 8, steps=5)
    page.page.mouse.up()
    expect(page.page.locator('.word[aria-pressed="true"]')).to_have_count(2)
    page.page.locator(".word").first.click()
    expect(page.page.locator('.word[aria-pressed="true"]')).to_have_text(["pipe"])


def test_a_token_of_a_hit_shows_what_it_acted_on_and_the_reverse(page: Tab) -> None:
    ask(page)
    page.page.locator(f"{HELPED} >> .tokens .help").first.click()
    page.page.wait_for_selector(".pair")
    assert "acted on these words of the answer" in page.page.inner_text(".note")
    answer, row = page.page.locator(".pair section").all()
    assert row.locator('[aria-pressed="true"]').count() == 1
    page.page.keyboard.press("Tab")
    row.locator('[aria-pressed="true"]').focus()
    page.page.keyboard.press("Escape")
    sums = row.locator(".tokens").inner_html()
    answer.locator("[role=button]").first.focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    assert "was moved by" in page.page.inner_text(".note")
    assert row.locator(".tokens").inner_html() != sums
    page.page.keyboard.press("Escape")
    assert row.locator(".tokens").inner_html() == sums
    page.page.click("summary:text-is('Every pair of tokens')")
    painted = page.page.locator(".heat canvas").evaluate(
        "map => map.getContext('2d').getImageData(0, 0, map.width, map.height).data.some(n => n)"
    )
    assert painted and len(page.texts(".map tbody tr")) == 5
    page.page.locator(".heat canvas").hover(position={"x": 3, "y": 3})
    assert "×" in page.page.inner_text(".note")
    page.check("pair")


def test_an_answer_of_ones_own_and_another_metric(page: Tab) -> None:
    page.page.select_option("select[name=metric]", "hybrid")
    assert "Shared words, cosine and state" in page.page.inner_text("#metric-says")
    ask(page, response=" fiddle")
    assert page.page.inner_text(".answer").strip() == "fiddle"
    assert page.texts(".hits h3") == ["Found, the best first"]
    page.page.reload()
    page.page.wait_for_selector(".hits .hit")
    assert page.page.input_value("textarea[name=response]") == " fiddle"
    assert page.page.input_value("select[name=metric]") == "hybrid"
    before = scores(page)
    page.page.select_option("select[name=metric]", "cosine")
    until_others(page, before)
    assert page.texts(".hits h3")[0].startswith("Helped")
    for name in ("per-token", "decorrelated", "lexical"):
        page.page.select_option("select[name=metric]", name)
        assert len(page.page.inner_text("#metric-says")) > 20
    page.page.select_option("select[name=metric]", "dot")


def test_why_this_answer_and_not_another(page: Tab) -> None:
    ask(page)
    before = scores(page)
    page.page.click("summary:text-is('Why this and not that?')")
    assert page.page.input_value("textarea[name=instead]").strip() == "pipe organ"
    page.page.fill("textarea[name=instead]", "fiddle")
    page.page.click("button:text-is('Compare')")
    until_others(page, before)
    assert page.texts(".hits h3") == ["Towards this answer", "Towards the other"]
    assert page.texts(".versus mark") == ["pipe", "organ", "fiddle"]
    page.check("instead")
    both = scores(page)
    page.page.reload()
    page.page.wait_for_selector(".hits .hit")
    assert scores(page) == both
    page.page.click("button:text-is('Only the first')")
    until_others(page, both)
    assert scores(page) == before


def test_filters_have_counts_and_are_kept_in_the_link(page: Tab, rows: list[Row]) -> None:
    ask(page)
    before = scores(page)
    page.page.click("summary:text-is('Filter')")
    facet = page.page.locator(".facets section[aria-label=field]")
    expected = Counter(row["field"] for row in rows)
    expect(facet.locator(".value")).to_have_count(len(expected))
    shown = [text.split() for text in facet.locator(".value").all_text_contents()]
    assert {words[0]: int(words[1]) for words in shown} == expected
    page.check("filters")
    facet.locator(".value", has_text="pet").click()
    until_others(page, before)
    assert "where=field%3Dpet" in page.page.url
    assert page.texts(".chips button") == ["field=pet ×"]
    chips = page.page.locator(".hit .chip", has_text="field").all_text_contents()
    assert {chip.split()[-1] for chip in chips} == {"pet"}
    page.page.fill("input[name=where]", "field=none")
    page.page.click("button:text-is('Add')")
    expect(page.page.locator(".hits .empty")).to_have_count(2)
    assert "remove one" in page.page.inner_text(".hits .empty >> nth=0")
    page.page.fill("input[name=where]", "nothing=1")
    page.page.click("button:text-is('Add')")
    page.page.wait_for_selector("#status.wrong")
    assert "the fields are" in page.page.inner_text("#status")
    page.page.wait_for_load_state("networkidle")
    page.take(422)


def test_what_is_shown_is_saved_as_json_and_csv(page: Tab) -> None:
    ask(page)
    value = json.loads(saved(page, "JSON"))
    hits = [hit for group in value["groups"] for hit in group["hits"]]
    assert len(hits) == len(scores(page)) and value["query"]["response"] == " pipe organ"
    table = list(csv.DictReader(io.StringIO(saved(page, "CSV"))))
    assert [row["key"] for row in table] == [hit["key"] for hit in hits]
    assert float(table[0]["score"]) == hits[0]["score"]


def test_hostile_rows_are_shown_as_text(page: Tab) -> None:
    page.page.click("nav a:text-is('Rows')")
    page.page.fill("input[name=words]", "hostile")
    page.page.click("button:text-is('Show')")
    expect(page.page.locator(".rows > li")).to_have_count(len(HOSTILE))
    assert sorted(page.texts(".rows .head a")) == sorted(row["id"] for row in HOSTILE)
    shown = "\n".join(page.page.locator(".rows > li").all_text_contents())
    for text in (MARKUP, "⟨U+202E⟩", "⟨U+001B⟩", "⟨U+0000⟩", "\u0634\u0643\u0631\u0627"):
        assert text in shown
    assert len(shown) < 5_000
    assert page.page.locator("main img, main script").count() == 0
    page.check("hostile")
    for row in HOSTILE:
        page.page.evaluate(
            "key => { location.hash = `#/row?key=${encodeURIComponent(key)}` }", row["id"]
        )
        until(
            page.page,
            "key => document.querySelector('h1 .key')?.textContent === key",
            arg=row["id"],
        )
        assert "What the index keeps of it" in page.page.inner_text("main")
        assert page.page.locator("main img, main script").count() == 0
        if row["id"] == "long":  # one million characters, a piece at a time
            page.page.click("button:text-matches('Show more of 1,000,000') >> nth=0")
            assert len(page.page.inner_text("main")) < 200_000
    page.go("#/ask")
    page.page.wait_for_selector("textarea[name=response]", state="attached")
    ask(page, prompt=MARKUP, response=" hostile " + MARKUP)
    assert page.page.inner_text(".answer").strip().endswith(MARKUP)
    assert page.page.locator("main img, main script").count() == 0


def test_without_the_token_a_link_asks_for_it_and_then_opens(
    browser: Any, address: str, tmp_path: Path
) -> None:
    with browser.new_context(reduced_motion="reduce") as context:
        new = Tab(context.new_page(), address, tmp_path)
        new.page.goto(f"{address}#/rows?words=zebra")
        new.page.wait_for_selector("input[name=token]")
        new.take(401)
        assert "behind #token=" in new.page.inner_text("main")
        new.check("token")
        new.page.fill("input[name=token]", "another-one-of-24-letters")
        new.page.click("button:text-is('Open')")
        expect(new.page.locator("#status")).to_have_text("The token is another one.")
        new.take(401)
        new.page.fill("input[name=token]", TOKEN)
        new.page.click("button:text-is('Open')")
        new.page.wait_for_selector("input[name=words]")
        assert new.page.input_value("input[name=words]") == "zebra"
        new.go("#/about")
        api = json.loads(saved(new, "the API as OpenAPI"))
        assert "/api/query" in api["paths"]
        new.require_none()


def test_words_of_an_answer_are_asked_about_beside_another_answer(page: Tab) -> None:
    ask(page, response=" a pipe organ")
    page.page.click("summary:text-is('Why this and not that?')")
    page.page.fill("textarea[name=instead]", " the tuba")
    page.page.click("button:text-is('Compare')")
    expect(page.page.locator(".hits h3").first).to_have_text("Towards this answer")
    compared = scores(page)
    page.page.locator(".answer .word").nth(1).click()
    expect(page.page.locator(".hits h3").first).to_have_text("Helped: made it more likely")
    assert scores(page) != compared
    page.page.click("button:text-is('the whole answer')")
    expect(page.page.locator(".hits h3").first).to_have_text("Towards this answer")
    assert scores(page) == compared
