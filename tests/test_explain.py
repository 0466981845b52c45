"""Token-by-token terms: exact, summing to the score, and shown without harm."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import assert_one_line, run, run_well, write
from helpers.models import SIZES, VOCABULARY, tiny_model, tiny_tokenizer
from helpers.tiny_vision import load
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForSequenceClassification, LlamaConfig

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, Sampling, VectorConfig
from forvalue_index.analysis.heatmap import heatmap
from forvalue_index.cli import highlight
from forvalue_index.data.token_text import pieces
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import wrap_model
from forvalue_index.records import Explanation, Passage, Row
from forvalue_index.vectors.closed_form import precise_token_influence, token_influence
from forvalue_index.vectors.tokens import TokenFactors

QUERY = {"prompt": "who wrote it", "response": " ada did"}


def build(path: Path, rows: list[Row], recipe: str = "balanced") -> InfluenceIndex:
    index = InfluenceIndex.create(
        path,
        wrap_model(tiny_model("llama"), tiny_tokenizer()),
        format=FormatConfig(key_field="id"),
        vector=VectorConfig(recipe=recipe, dim=32, sketch_dim=256),
    )
    index.add(rows)
    return index


@pytest.fixture()
def index(tmp_path: Path, rows: list[Row]) -> InfluenceIndex:
    return build(tmp_path / "i", rows)


@pytest.mark.parametrize("recipe", ["balanced", "raw", "kfac"])
def test_terms_add_up_to_the_exact_score(tmp_path: Path, rows: list[Row], recipe: str) -> None:
    with build(tmp_path / "i", rows, recipe) as index:
        hits = index.query(QUERY, 5, exact=True)
        for hit, passage in zip(hits, index.contributions(QUERY, hits), strict=True):
            found = index.explain(QUERY, hit.key)
            assert (found.id, found.key) == (hit.id, hit.key)
            assert found.terms.shape == (found.query.scored.sum(), found.sample.scored.sum())
            for total in (
                found.score,
                found.terms.sum(0).sum(),
                found.terms.sum(1).sum(),
                found.query.values.sum(),
                found.sample.values.sum(),
                passage.values.sum(),
            ):
                assert total == pytest.approx(hit.score, rel=1e-5)
            np.testing.assert_allclose(found.sample.values, passage.values, rtol=1e-4, atol=1e-7)
            assert not found.sample.values[~found.sample.scored].any()
        assert np.unique(np.round([hit.score for hit in hits], 6)).size > 1  # so it could fail


def test_a_part_of_the_query_has_its_rows_of_the_terms(index: InfluenceIndex) -> None:
    whole = index.explain(QUERY, "row-3")
    for part in (index.part(QUERY, "ada"), index.part(QUERY, tokens=slice(1, 4))):
        assert part.n_scored == 3
        np.testing.assert_allclose(
            index.explain(part, "row-3").terms, whole.terms[1:4], rtol=1e-4, atol=1e-7
        )
        [hit] = index.query(part, 1, exact=True, where=["n=3"])
        assert hit.score == pytest.approx(whole.terms[1:4].sum(), rel=1e-5)
    rest = index.part(QUERY, tokens=slice(-3, None))
    np.testing.assert_allclose(
        index.explain(rest, "row-3").terms, whole.terms[-3:], rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("span", ["wrote", "babbage", ""])
def test_a_span_must_be_in_the_response(index: InfluenceIndex, span: str) -> None:
    with pytest.raises(InputError, match="is not in the response ' ada did'"):
        index.part(QUERY, span)


def test_what_is_no_part(index: InfluenceIndex) -> None:
    with pytest.raises(InputError, match="tokens 9:12 are not among the response's 8"):
        index.part(QUERY, tokens=slice(9, 12))
    with pytest.raises(InputError, match="give one of them"):
        index.part(QUERY)
    with pytest.raises(InputError, match="has key 'nobody'"):
        index.explain(QUERY, "nobody")


def test_a_span_in_the_prompt_too_is_found_in_the_response(index: InfluenceIndex) -> None:
    query = {"prompt": "ada ada", "response": " ada"}
    assert np.flatnonzero(index.part(query, "ada").scored).tolist() == [8, 9, 10]


def test_the_terms_of_a_classifier_are_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = LlamaConfig(**SIZES, pad_token_id=0, id2label={0: "calm", 1: "angry", 2: "glad"})
    model = AutoModelForSequenceClassification.from_config(settings)
    rows = [{"id": f"row-{i}", "text": f"text {i}" * (i + 1), "label": i % 3} for i in range(6)]
    with InfluenceIndex.create(
        tmp_path / "i",
        wrap_model(model, tiny_tokenizer()),
        format=FormatConfig(text_field="text", label_field="label", key_field="id"),
        vector=VectorConfig(dim=32, sketch_dim=256),
    ) as index:
        index.add(rows)
        query = {"text": "a text", "label": "glad"}
        hits = index.query(query, 3, exact=True)
        found = index.explain(query, hits[0].key)
        assert found.terms.shape == (1, 1)
        assert found.score == pytest.approx(hits[0].score, rel=1e-5)
        assert found.query.texts == [*"a text", "[glad]"]
        assert found.query.scored.tolist() == [*[False] * 6, True]
        assert [p.values.sum() for p in index.contributions(query, hits)] == pytest.approx(
            [hit.score for hit in hits], rel=1e-5
        )
        with pytest.raises(InputError, match="is a single class and has no parts"):
            index.part(query, "text")


def test_the_terms_of_samples_with_images_add_up(tmp_path: Path) -> None:
    def picture(number: int) -> str:
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number * 20, 99, 255 - number * 20)).save(path)
        return str(path)

    rows = [
        {"id": f"row-{i}", "image": picture(i), "prompt": "<image>what", "response": f" it{i}"}
        for i in range(8)
    ]
    model, processor = load("llava")
    with InfluenceIndex.create(
        tmp_path / "i",
        wrap_model(model, processor.tokenizer, processor=processor),
        format=FormatConfig(key_field="id", image_field="image"),
        vector=VectorConfig(dim=32, sketch_dim=256),
    ) as index:
        index.add(rows)
        asked = {"image": picture(9), "prompt": "<image>what"}
        answer = index.respond(asked, Sampling(6))
        assert answer.images and answer.n_scored == len(answer.input_ids) - np.argmax(answer.scored)
        hits = index.query(answer, 3, exact=True)
        for hit in hits:
            found = index.explain(answer, hit.key)
            assert found.score == pytest.approx(hit.score, rel=1e-5)
            assert any("×" in text for text, _, _ in found.sample.shown())
        other = index.respond(asked | {"image": picture(0)}, Sampling(6))
        assert index.explain(other, hits[0].key).score != pytest.approx(hits[0].score, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_terms_of_several_adapters_are_added_up(tmp_path: Path, rows: list[Row]) -> None:
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    paths = []
    for seed in range(2):
        model = tiny_model("llama")
        torch.manual_seed(seed)
        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(tmp_path / f"lora{seed}")
        paths.append(str(tmp_path / f"lora{seed}"))

    def built(name: str, adapters: list[str]) -> InfluenceIndex:
        index = InfluenceIndex.create(
            tmp_path / name,
            ModelConfig(str(base), adapters=tuple(adapters)),
            format=FormatConfig(key_field="id"),
            vector=VectorConfig(recipe="raw", dim=32, sketch_dim=256),
        )
        index.add(rows)
        return index

    with (
        built("both", paths) as both,
        built("one", paths[:1]) as one,
        built("two", paths[1:]) as two,
    ):
        [hit] = both.query(QUERY, 1, exact=True)
        terms = both.explain(QUERY, hit.key).terms
        assert terms.sum() == pytest.approx(hit.score, rel=1e-5)
        shares = [index.explain(QUERY, hit.key).terms for index in (one, two)]
        np.testing.assert_allclose(terms, shares[0] + shares[1], rtol=1e-4, atol=1e-7)
        assert not np.allclose(shares[0], shares[1])
        [passage] = both.contributions(QUERY, [hit])
        assert passage.values.sum() == pytest.approx(hit.score, rel=1e-5)
        # What is answered is answered under the last adapter, where training ended.
        answers = [index.respond("who", Sampling(8)).row for index in (both, one, two)]
        assert answers[0] == answers[2] != answers[1]


def test_float64_terms_do_not_depend_on_the_block() -> None:
    generator = torch.Generator().manual_seed(0)

    def factors(n: int) -> TokenFactors:
        hidden, errors = (torch.randn(n, m, generator=generator) for m in (7, 23))
        return TokenFactors(hidden, errors, torch.zeros(n, dtype=torch.int64), 1)

    a, b = factors(3), factors(5)
    plain = token_influence(a, b)
    for block in (1, 10, 23, 99):
        found = precise_token_influence(a, b, block)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), plain)


class Bytes:
    """A tokenizer whose tokens are bytes, and whose decoder drops a space at the start."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace").removeprefix(" ")


@pytest.mark.parametrize("text", ["", "a", "a b", "naïve 𝛼€ x", "€", "tab\tline\n", "日本"])
def test_pieces_are_the_text(text: str) -> None:
    ids = list(text.encode())
    found = pieces(Bytes(), ids)
    assert "".join(found) == text
    assert len(found) == len(ids)
    assert all(len(piece) <= 1 for piece in found)


def test_pieces_of_what_is_no_text() -> None:
    for ids in (b"a\xe2\x82", b"\xff\xff\xffb", b"\x80", b"a\xf0"):
        assert len(pieces(Bytes(), list(ids))) == len(ids)
    assert pieces(Bytes(), list(b"\xff" * 6 + b"b"))[-1].endswith("b")
    tokenizer = tiny_tokenizer()
    ids = tokenizer("hello you", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    assert pieces(tokenizer, [*ids, end]) == [*"hello you", "</s>"]
    assert max(ids) < VOCABULARY


def explanation(texts: list[str]) -> Explanation:
    """One with hostile texts on both sides."""
    scored = np.arange(len(texts)) >= 1
    terms = np.random.default_rng(0).normal(size=(scored.sum(), scored.sum()))
    sides = []
    for axis in (1, 0):
        values = np.zeros(len(texts))
        values[scored] = terms.sum(axis)
        sides.append(Passage(texts, scored, values))
    return Explanation(7, texts[0], *sides, terms)


HOSTILE = [
    "</title><script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>",
    "<!-- <script>",
    "\u2028@DATA@\\u003c\\1",
    "\ud800",
    "'\"&amp;",
]


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    value: dict[str, Any] = json.loads(found[1])
    return value


def test_the_page_holds_the_texts_as_data_only() -> None:
    given = explanation(HOSTILE)
    page = heatmap(given)
    for text in HOSTILE[:4]:
        assert text not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert not re.search(
        r"src\s*=|href\s*=|url\(|@import|https?:", heatmap(explanation(["a", "b"]))
    )
    data = page_data(page)
    assert [text for text, _ in data["query"]] == HOSTILE
    assert [place for _, place in data["sample"]] == [-1, 0, 1, 2, 3, 4, 5]
    terms = np.frombuffer(base64.b64decode(data["terms"]), "<f4").reshape(6, 6)
    np.testing.assert_allclose(terms, given.terms, rtol=1e-6)
    assert data["score"] == given.score
    page.encode()


def test_the_page_runs_its_own_script_and_no_other() -> None:
    page = heatmap(explanation(HOSTILE))
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page


def test_many_equal_tokens_are_shown_as_one() -> None:
    texts = ["<image>"] * 196 + ["a", " b", " b"]
    scored = np.arange(len(texts)) >= 196
    values = np.where(scored, [0.0] * 196 + [1, 2, 3], 0)
    shown = Passage(texts, scored, values).shown()
    assert shown == [("<image> × 196 ", -1, 0.0), ("a", 0, 1.0), (" b", 1, 2.0), (" b", 2, 3.0)]


def test_a_snippet_has_the_part_that_contributed_most() -> None:
    texts = [f"w{i} " for i in range(300)]
    values = np.where(np.arange(300) == 200, -5.0, 0.01)
    text = highlight.snippet(Passage(texts, np.arange(300) >= 10, values), 60)
    assert "w200 " in text.plain and text.plain.startswith("…") and text.plain.endswith("…")
    assert len(text) < 70
    assert {str(span.style) for span in text.spans if "w200" in text.plain[span.start : span.end]}
    whole = Passage(["a", "", "é\x1b[31m"], np.array([False, True, True]), np.array([0, 1.0, 2.0]))
    assert highlight.snippet(whole).plain == "aé\N{REPLACEMENT CHARACTER}[31m"


@pytest.fixture()
def built(tmp_path: Path, rows: list[Row], model_dir: Path) -> Path:
    path = tmp_path / "my.index"
    train = write(tmp_path / "train.jsonl", rows)
    run_well(
        *("build", train, "--index", path, "--model", model_dir),
        *("--key-field", "id", "--dim", 32, "--sketch-dim", 256),
    )
    return path


TYPED = ("--prompt", QUERY["prompt"], "--response", QUERY["response"])


def test_explain_for_programs(built: Path, tmp_path: Path, rows: list[Row]) -> None:
    value = json.loads(run_well("explain", "--index", built, *TYPED, "--key", "row-4", "--json"))
    assert sorted(value) == ["id", "key", "query", "sample", "score", "terms"]
    terms = np.array(value["terms"])
    assert value["score"] == pytest.approx(terms.sum())
    sample = value["sample"]
    assert "".join(sample["tokens"]) == rows[4]["prompt"] + rows[4]["response"]
    assert sum(sample["scored"]) == terms.shape[1] == len(rows[4]["response"])
    np.testing.assert_allclose(np.array(sample["contributions"])[sample["scored"]], terms.sum(0))
    np.testing.assert_allclose(sum(value["query"]["contributions"]), value["score"])
    # The same by rank, of a file, and of a part.
    hits = run_well("query", "--index", built, *TYPED, "-k", 3, "--json").splitlines()
    keys = [json.loads(line)["key"] for line in hits]
    data = write(tmp_path / "queries.jsonl", [rows[0], QUERY])
    second = run_well(
        *("explain", "--index", built, "--data", data, "--query", 1, "--hit", 2, "--json")
    )
    assert json.loads(second)["key"] == keys[1]
    part = json.loads(
        run_well("explain", "--index", built, *TYPED, "--key", "row-4", "--span", "did", "--json")
    )
    np.testing.assert_allclose(part["terms"], terms[-3:], rtol=1e-4, atol=1e-7)


def test_explain_for_people(built: Path, tmp_path: Path, rows: list[Row]) -> None:
    page = tmp_path / "why.html"
    result = run(
        "explain", "--index", built, *TYPED, "--key", "row-4", "--html", page, "--pairs", 3
    )
    assert result.exit_code == 0, result.stderr
    assert rows[4]["prompt"] + rows[4]["response"] in result.stdout
    assert result.stdout.count("%") == 3
    assert "why.html written" in result.stderr.replace("\n", "")
    data = page_data(page.read_text())
    assert "".join(text for text, _ in data["query"]) == QUERY["prompt"] + QUERY["response"]


def test_explain_says_what_is_wrong(built: Path, tmp_path: Path) -> None:
    explain = ("explain", "--index", built, *TYPED)
    assert_one_line(run(*explain, "--key", "nobody"), "has key 'nobody'")
    assert_one_line(run(*explain, "--hit", 99), "has 30 hits, so there is no hit 99")
    assert_one_line(run(*explain, "--query", 2), "no query 2: the data hold 1, counted from 0")
    assert_one_line(run(*explain, "--span", "zzz"), "'zzz' is not in the response ' ada did'")
    lost = run(*explain, "--html", tmp_path / "no" / "such.html")
    assert_one_line(lost, "cannot be written")
    for wrong in (
        ["--key", "a", "--hit", "1"],
        ["--span", "a", "--tokens", "0:1"],
        ["--tokens", "3"],
    ):
        assert run(*explain, *wrong).exit_code == 2
    assert run("explain", "--index", built).exit_code == 2


def test_query_shows_a_part_and_the_tokens_of_its_hits(built: Path) -> None:
    part = ("query", "--index", built, *TYPED, "--tokens", "1:4", "-k", 3, "--exact")
    lines = [json.loads(line) for line in run_well(*part, "--highlight", "--json").splitlines()]
    for hit in lines:
        texts, values = zip(*hit["tokens"], strict=True)
        assert "".join(texts) == hit["sample"]["prompt"] + hit["sample"]["response"]
        assert sum(value or 0 for value in values) == pytest.approx(hit["score"], rel=1e-4)
        assert values.count(None) == len(hit["sample"]["prompt"])
    assert lines[0]["sample"]["prompt"] in run_well(*part, "--highlight")
