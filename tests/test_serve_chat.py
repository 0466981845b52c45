"""The page with conversations, and with a model that reads images."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Tab, served, tab, until
from helpers.models import save_model
from helpers.tiny_vision import png, save

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.records import Row

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

SHARED = Path(os.environ.get("FORVALUE_SHARED", Path(__file__).parents[2] / "shared"))
FIXED = "Be kind."
TEMPLATE = (
    "{% if messages[0].role != 'system' %}" + FIXED + "\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SMALL = VectorConfig(dim=64, sketch_dim=512)
TURNS = [("user", "hello you"), ("assistant", "yes yes")]


def talk(n: int) -> list[Row]:
    """One turn of each, or two."""
    turns = [*TURNS[: 2 * (n % 2)], ("user", f"q {n}"), ("assistant", "ok")]
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def chat(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """A tab on an index of conversations."""
    folder = tmp_path_factory.mktemp("chat")
    model = save_model(folder / "model", "llama", 0)
    rows: list[Row] = [{"id": f"{n}", "messages": talk(n)} for n in range(12)]
    format = FormatConfig(messages_field="messages", key_field="id", chat_template=TEMPLATE)
    made, _ = InfluenceIndex.build(folder / "index", rows, str(model), format=format, vector=SMALL)
    with made as index, served(index) as address, tab(browser, address, folder) as page:
        yield page


def own_answer(page: Tab, prompt: str, answer: str) -> None:
    page.page.fill("textarea[name=prompt]", prompt)
    if not page.page.is_visible("textarea[name=response]"):
        page.page.click("summary:text-is('Your own answer, and options')")
    page.page.fill("textarea[name=response]", answer)
    page.page.click("button:text-is('Ask the model')")
    page.page.wait_for_selector(".hits .hit")


def test_conversations_name_who_speaks_and_fold_the_template(chat: Tab) -> None:
    own_answer(chat, "hello you", "yes yes")
    first = chat.page.locator(".hit .tokens", has_not_text="hello").first  # not cut
    assert set(first.locator(".role").all_text_contents()) == {"user", "assistant"}
    assert FIXED not in (first.text_content() or "")
    first.locator("button.fold").click()
    assert FIXED in (first.text_content() or "")
    chat.check("chat")


def test_a_conversation_goes_on_and_is_kept_in_the_link(chat: Tab) -> None:
    own_answer(chat, "hello you", "yes yes")
    chat.page.click("button:text-is('Go on with the conversation')")
    assert chat.page.locator("textarea[name=turn]").count() == 2
    own_answer(chat, "and then", "no")
    expect(chat.page.locator(".answer")).to_have_text("no")
    until(chat.page, "location.hash.includes('and+then')")
    chat.page.wait_for_load_state("networkidle")
    before = chat.texts(".hit strong")
    chat.page.reload()
    chat.page.wait_for_selector(".hits .hit")
    assert chat.texts(".hit strong") == before
    turns = chat.page.locator("textarea[name=turn]")
    assert turns.evaluate_all("all => all.map(area => area.value)") == [text for _, text in TURNS]
    chat.check("turns")


def test_words_of_an_answer_in_a_conversation_are_asked_about(chat: Tab) -> None:
    chat.go("#/row?key=1")
    chat.page.click("text=Which rows drove this response?")
    chat.page.wait_for_selector(".hits .hit")
    own_answer(chat, "and then", "no yes")
    expect(chat.page.locator(".answer")).to_have_text("no yes")
    assert chat.page.locator("textarea[name=turn]").count() == 2
    whole = chat.texts(".hit strong")
    chat.page.locator(".answer .word").nth(1).click()
    expect(chat.page.locator(".hit strong").first).not_to_have_text(whole[0])
    assert "part=3-6" in chat.page.url
    chat.page.locator(".hit [data-place]").first.click()
    chat.page.wait_for_selector(".pair")
    chat.require_none()


def test_a_row_of_turns_is_asked_about(chat: Tab) -> None:
    chat.go("#/row?key=1")
    chat.page.wait_for_selector(".turn")
    assert chat.texts(".row-text .role") == ["user", "assistant"] * 2
    chat.page.click("text=Which rows drove this response?")
    chat.page.wait_for_selector(".hits .hit")
    assert chat.page.locator("textarea[name=turn]").count() == 2
    assert chat.page.input_value("textarea[name=prompt]") == "q 1"


def test_a_conversation_with_a_picture_has_neighbours(browser: Any, tmp_path: Path) -> None:
    def said(n: int) -> Row:
        image = base64.b64encode(png(n)).decode()
        parts = [{"type": "image", "image": image}, {"type": "text", "text": f"what is {n}"}]
        answer = {"role": "assistant", "content": "ok" * (1 + n % 3)}
        return {"id": str(n), "messages": [{"role": "user", "content": parts}, answer]}

    rows = [said(n) for n in range(6)]
    format = FormatConfig(messages_field="messages", key_field="id", max_length=400)
    model = save(tmp_path / "model", "llava")
    made, _ = InfluenceIndex.build(tmp_path / "i", rows, str(model), format=format, vector=SMALL)
    with made as index, served(index) as address, tab(browser, address, tmp_path) as page:
        page.go("#/row?key=1")
        page.page.click("button:text-is('Neighbours')")
        page.page.wait_for_selector(".near li")
        hits = index.query(index.training_samples([1]), 7, metric="cosine")
        nearest = [hit.key for hit in hits if hit.key != "1" and hit.score > 0]
        assert page.texts(".near .key") == nearest and len(nearest) > 0


def test_a_picture_is_asked_about(browser: Any, tmp_path: Path) -> None:
    model, data = SHARED / "models" / "tiny-llava-emoji", SHARED / "data" / "emoji"
    if not (model.exists() and data.exists()):
        pytest.skip("there is no model of emoji beside the repository")
    lines = (data / "metadata.jsonl").read_text().splitlines()[:40]
    found = [json.loads(line) for line in lines]
    rows: list[Row] = [
        {"id": row["caption"], "prompt": "", "response": f" {row['caption']}"}
        | {"image": str(data / row["file_name"])}
        for row in found
    ]
    format = FormatConfig(image_field="image", key_field="id")
    made, _ = InfluenceIndex.build(tmp_path / "i", rows, str(model), format=format, vector=SMALL)
    with made as index, served(index) as address, tab(browser, address, tmp_path) as page:
        page.page.set_input_files("input[name=images]", data / found[3]["file_name"])
        expect(page.page.locator(".thumbs img")).to_have_count(1)  # it was read
        page.page.click("button:text-is('Ask the model')")
        page.page.wait_for_selector(".hits .hit")
        assert len(page.page.inner_text(".answer").strip()) > 0
        until(page.page, "document.querySelector('.hit img').naturalWidth > 0")
        assert "× 36" in (page.page.locator(".hit .tokens").first.text_content() or "")
        page.check("picture")
        page.page.locator(".hit [data-place]").first.click()
        page.page.wait_for_selector(".pair")
        page.go(f"#/row?key={rows[5]['id'].replace(' ', '+')}")
        page.page.click("button:text-is('Neighbours')")
        page.page.wait_for_selector(".near li")
        page.page.click("text=Which rows drove this response?")
        page.page.wait_for_selector(".hits .hit")
        expect(page.page.locator(".thumbs img")).to_have_count(1)
        first = page.page.locator(".hit .key").first
        expect(first).to_have_text(rows[5]["id"])  # the row itself, by its picture
        assert "picture=" in page.page.url
