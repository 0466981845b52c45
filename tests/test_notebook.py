"""What a notebook shows of results, and results as tables of other libraries."""

from __future__ import annotations

import re
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Explanation, Hit, Hits, Passage, Row
from forvalue_index.rendering.html import LISTED

ASKED: Row = {"prompt": "a b", "response": " c d"}
MARKUP = "</td><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e"


class Reader(HTMLParser):
    """The text of a page, its tags, and whether they are well nested."""

    VOID = ("br", "hr", "img", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", set[str](), list[str]()
        self.attributes = set[str]()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(result: object) -> Reader:
    """What a notebook shows of a result: no script, nothing loaded, no control character."""
    page: str = result._repr_html_()  # type: ignore[attr-defined]
    found = Reader(page)
    assert not found.tags & {"script", "img", "link", "iframe", "style", "object"}
    assert found.attributes <= {"style", "title"}
    assert "url(" not in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    page.encode()
    return found


def test_hits_are_a_table(index: InfluenceIndex) -> None:
    hits = index.query(ASKED, k=5)
    shown = read(hits).text
    for hit in hits:
        assert f"{hit.score:+.3g}" in shown and hit.key in shown and hit.sample["response"] in shown
    assert isinstance(hits, list) and hits == [*hits]
    assert isinstance(hits[1:3], Hits) and hits[1:3][0] == hits[1]


def test_hits_for_other_libraries(index: InfluenceIndex) -> None:
    hits = index.query([ASKED, {"prompt": "b", "response": " a"}], k=3)
    frame = hits.to_pandas()
    assert frame["key"].tolist() == [hit.key for hit in hits]
    assert frame["score"].tolist() == [hit.score for hit in hits]
    assert frame["sample.prompt"].tolist() == [hit.sample["prompt"] for hit in hits]
    assert hits.to_dataset().to_pandas()["query"].tolist() == [0, 0, 0, 1, 1, 1]
    words = index.search(hits[0].sample["response"], k=2).to_pandas()
    assert "lexical" in words.columns


def test_values_of_several_kinds_are_json_in_a_data_set() -> None:
    rows: list[Row] = [{"tag": 1}, {"tag": "one"}, {"messages": [{"role": "user", "content": "a"}]}]
    hits = Hits(Hit(0, i + 1, i, str(i), 1.0, row) for i, row in enumerate(rows))
    data = hits.to_dataset()
    assert data["sample.tag"][:] == ["1", '"one"', None]
    assert data["sample.messages"][2] == rows[2]["messages"]


def test_hostile_texts_are_shown_as_text() -> None:
    row = {"prompt": MARKUP, MARKUP: MARKUP[:30], "messages": [{"role": MARKUP, "content": MARKUP}]}
    shown = read(Hits([Hit(0, 1, 0, MARKUP, 1.0, row)]))
    assert "<script>alert(1)</script>" in shown.text
    texts, scored = ["", MARKUP, "\ud800"], np.array([False, True, True])
    passage = Passage(texts, scored, np.array([0.0, 1.0, -1.0]))
    found = Explanation(0, MARKUP, passage, passage, np.array([[1.0, 0.0], [0.0, -1.0]]))
    assert "<script>alert(1)</script>" in read(found).text


def test_many_hits_are_cut(index: InfluenceIndex) -> None:
    hit = index.query(ASKED, k=1)[0]
    shown = read(Hits([hit] * (LISTED + 1))).text
    assert f"the first {LISTED} of {LISTED + 1} hits" in shown
    assert read(Hits([])).text == "scorekeytraining row"


def test_an_explanation_has_both_texts_and_its_pairs(index: InfluenceIndex) -> None:
    key = index.query(ASKED, k=1)[0].key
    found = index.explain(ASKED, key)
    shown = read(found)
    assert f"{found.score:+.3g}" in shown.text and key in shown.text
    frame = found.to_pandas()
    assert len(frame) == found.terms.size
    assert frame["influence"].sum() == pytest.approx(found.score)
    by_token = frame.groupby("query_place")["influence"].sum()
    values = found.query.values[found.query.scored]
    assert by_token.tolist() == pytest.approx(values.tolist())
    assert found.to_dataset().num_rows == found.terms.size


def test_an_audit_shows_its_suspects(index: InfluenceIndex) -> None:
    found = index.audit(top=5)
    shown = read(found).text
    for row in found.rows:
        assert row["key"] in shown and row["reasons"][0][:20] in shown
    frame = found.to_pandas()
    assert frame["key"].tolist() == [row["key"] for row in found.rows]
    assert found.to_dataset().num_rows == len(found.rows)


def test_an_index_is_named_in_a_line(index: InfluenceIndex) -> None:
    shown = repr(index)
    assert "\n" not in shown and str(index.directory) in shown and "30 samples" in shown


def test_the_page_from_a_notebook(index: InfluenceIndex) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with index.serve() as server:
        assert server.url in server._repr_html_()
        with urllib.request.urlopen(server.url) as page:
            assert b"<title>forvalue</title>" in page.read()
        with urllib.request.urlopen(f"{server.url}api/info") as info:
            assert b'"samples": 30' in info.read()
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url, timeout=5)
    assert len(index.query(ASKED, k=1)) == 1


def test_an_empty_index_is_named_too(tmp_path: Path, lm: LanguageModel) -> None:
    with InfluenceIndex.create(tmp_path / "empty", lm, format=FormatConfig()) as index:
        assert "0 samples" in repr(index)
