"""Words: BM25 against another library, files beside the segments, and the metrics with words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import pytest
from click.testing import CliRunner
from helpers.indexes import KEYED

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.cli import main
from forvalue_index.errors import InputError
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row, Segment
from forvalue_index.search.words import Lexicon, Words, shared_spans, words_file, words_of

VECTOR = VectorConfig(dim=32, sketch_dim=256)


def texts(n: int, seed: int = 0, words: int = 12) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(f"w{number}" for number in rng.zipf(1.3, rng.integers(1, words)) % 80)

    return [(text(), text()) for _ in range(n)]


def rows_of(pairs: list[tuple[str, str]], start: int = 0) -> list[Row]:
    return [
        {"id": f"r{i}", "prompt": prompt, "response": " " + response}
        for i, (prompt, response) in enumerate(pairs, start)
    ]


def reference(corpus: list[str], query: str) -> np.ndarray:
    """BM25 as another library has it, whose k1 + 1 in the numerator we leave out."""
    search = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    search.index([words_of(text) for text in corpus], show_progress=False)
    return np.asarray(search.get_scores(words_of(query)))


def test_bm25_is_that_of_another_library() -> None:
    pairs = texts(60)
    corpus = [" ".join(pair) for pair in pairs]
    parts = [Words.of(np.arange(a, b), pairs[a:b]) for a, b in ((0, 7), (7, 40), (40, 60))]
    found = Lexicon(parts, np.arange(60)).bm25(["w1 w2 w7", "nothing", "W3  w3, w5!"])
    for row, query in zip(found, ("w1 w2 w7", "nothing", "w3 w3 w5"), strict=True):
        np.testing.assert_allclose(row, reference(corpus, query), rtol=1e-5, atol=1e-6)
    assert found[0].any() and not found[1].any() and found[2].any()


def test_removed_samples_count_for_nothing() -> None:
    pairs = texts(60)
    live = np.setdiff1d(np.arange(60), [3, 8, 41])
    parts = [Words.of(np.arange(a, b), pairs[a:b]) for a, b in ((0, 30), (30, 60))]
    corpus = [" ".join(pairs[i]) for i in live]
    found = Lexicon(parts, live).bm25(["w1 w4 w2"])[0]
    np.testing.assert_allclose(found, reference(corpus, "w1 w4 w2"), rtol=1e-5, atol=1e-6)


def test_no_rows_and_no_words() -> None:
    assert Lexicon([], np.empty(0, np.int64)).bm25(["a"]).shape == (1, 0)
    empty = Words.of(np.arange(2), [("", ""), ("...", "!")])
    assert not Lexicon([empty], np.arange(2)).bm25(["a ..."]).any()


def test_words_of_scripts_without_spaces() -> None:
    assert words_of("Ünï's 12b") == ["ünï", "s", "12b"]
    assert words_of("東京は Tokyo") == ["東", "京", "は", "tokyo"]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Segment, Words]:
    segment = Segment("000000000000.faiss", 20, 1, "ab" * 32)
    words = Words.of(np.arange(20), texts(20))
    words.write(tmp_path, segment)
    return tmp_path, segment, words


def test_what_is_written_is_read(kept: tuple[Path, Segment, Words]) -> None:
    folder, segment, words = kept
    found = Words.read(folder, segment)
    assert found is not None
    for name in ("ids", "lengths", "terms", "starts", "places", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(words, name))
    assert Words.read(folder, Segment(segment.name, 20, 1, "cd" * 32)) is None


def test_a_damaged_file_is_not_believed(kept: tuple[Path, Segment, Words]) -> None:
    folder, segment, _ = kept
    path = words_file(folder, segment)
    sound = path.read_bytes()
    for at in range(0, len(sound), 97):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        assert Words.read(folder, segment) is None
    for size in (0, 1, 70, len(sound) - 1):
        path.write_bytes(sound[:size])
        assert Words.read(folder, segment) is None


def test_a_forged_file_reaches_no_memory_but_its_own(kept: tuple[Path, Segment, Words]) -> None:
    folder, segment, words = kept
    path = words_file(folder, segment)
    for forged in (
        replace(words, places=words.places + 19),
        replace(words, starts=words.starts * 2),
        replace(words, ids=words.ids[::-1]),
    ):
        forged.write(folder, segment)
        assert Words.read(folder, segment) is None
    head = json.dumps({"sha256": segment.sha256, "sizes": [10**15] * 6}).encode() + b"\n"
    path.write_bytes(head + hashlib.sha256(head).hexdigest().encode())
    assert Words.read(folder, segment) is None


def test_shared_spans_are_whole_runs() -> None:
    text = "He said: the Quick brown fox jumps, and left the quick brown dog."
    spans = [text[a:b] for a, b in shared_spans(text, "see the quick brown fox jumps and run")]
    assert spans == ["the Quick brown fox jumps, and"]
    assert shared_spans("a b c", "a b c") == []


@pytest.fixture
def index(tmp_path: Path, lm: LanguageModel) -> Iterator[InfluenceIndex]:
    rows = rows_of(texts(90))
    with InfluenceIndex.build(tmp_path / "i", rows, lm, format=KEYED, vector=VECTOR)[0] as made:
        yield made


def corpus_of(index: InfluenceIndex) -> list[str]:
    return [f"{s.row['prompt']} {s.row['response']}" for s in index.rows()]


def assert_searches(index: InfluenceIndex, query: str = "w1 w5 w9") -> None:
    corpus, samples = corpus_of(index), list(index.rows())
    scores = reference(corpus, query)
    expected = np.argsort(-scores, kind="stable")[: min(5, int((scores > 0).sum()))]
    found = index.search(query, 5)
    np.testing.assert_allclose([h.score for h in found], scores[expected], rtol=1e-5)
    assert all(h.score == pytest.approx(scores[[s.id for s in samples].index(h.id)]) for h in found)


def test_words_follow_the_rows(index: InfluenceIndex, lm: LanguageModel) -> None:
    assert_searches(index)
    index.add(rows_of(texts(40, seed=1), 90))
    assert_searches(index)
    index.remove([f"r{i}" for i in range(0, 60, 3)])
    assert_searches(index)
    index.add([{"id": "r1", "prompt": "unheard of", "response": " zebra"}], update=True)
    assert [hit.key for hit in index.search("zebra unheard")] == ["r1"]
    index.remove(["r1"])
    assert index.search("zebra unheard") == []
    index.compact()
    assert_searches(index)
    assert index.verify() == []
    words = b"".join(hashlib.blake2b(w, digest_size=8).digest()[::-1] for w in (b"zebra",))
    for path in (index.directory / "derived").glob("*.words"):
        assert words not in path.read_bytes() and words[::-1] not in path.read_bytes()
    with InfluenceIndex.open(index.directory, model=lm) as again:
        assert_searches(again)


def test_missing_and_damaged_words_are_made_again(index: InfluenceIndex) -> None:
    (path,) = (index.directory / "derived").glob("*.words")
    sound = path.read_bytes()
    path.unlink()
    with InfluenceIndex.open(index.directory) as again:
        assert_searches(again)
    assert path.read_bytes() == sound
    path.write_bytes(sound[:-1] + b"x")
    with InfluenceIndex.open(index.directory) as again:
        assert any("damaged" in problem for problem in again.verify())
        assert any("words" in line for line in again.repair())
        assert again.verify() == []
        assert_searches(again)
    assert path.read_bytes() == sound


def test_hits_of_hybrid_say_their_influence(index: InfluenceIndex) -> None:
    query = rows_of(texts(1, seed=9))[0]
    ids, scores = index.scores(index.samples([query]))
    influence = dict(zip(ids.tolist(), scores[0].tolist(), strict=True))
    for hit in index.query([query], 7, metric="hybrid"):
        assert hit.parts is not None
        assert hit.parts["influence"] == pytest.approx(influence[hit.id], rel=1e-3, abs=1e-6)


def test_hits_say_what_they_share(index: InfluenceIndex) -> None:
    row = next(iter(index.rows())).row
    query = {"prompt": "zzz", "response": f" {row['prompt']} and more"}
    index.add([{"id": "long", "prompt": "one two three four five", "response": " six"}])
    (first, *_) = index.query([query | {"prompt": "two three four five"}], 1, metric="lexical")
    assert (first.key, first.shared) == ("long", ("two three four five",))


def test_filters_and_many_queries(index: InfluenceIndex) -> None:
    queries = rows_of(texts(40, seed=3))
    together = index.query(queries, 3, metric="hybrid", where=["id in r1,r2,r3,r4"])
    assert {hit.key for hit in together} <= {"r1", "r2", "r3", "r4"} and len(together) == 120
    alone = [
        h for q in queries for h in index.query([q], 3, metric="hybrid", where="id in r1,r2,r3,r4")
    ]
    for a, b in zip(together, alone, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)


def test_a_part_of_the_response_has_its_own_words(index: InfluenceIndex) -> None:
    (sample,) = index.samples([{"prompt": "w1", "response": " w2 w3 w4"}])
    part = index.part(sample, " w3")
    assert index.scores([part], "lexical")[1].tolist() == [
        pytest.approx(reference(corpus_of(index), "w3").tolist(), rel=1e-5)
    ]


@pytest.mark.parametrize("asked", [{"exact": True}, {"opponents": True}])
def test_words_have_no_exact_form_and_no_opponents(
    index: InfluenceIndex, asked: dict[str, bool]
) -> None:
    with pytest.raises(InputError, match="use dot, cosine"):
        index.query(rows_of(texts(1)), 3, metric="hybrid", **asked)
    with pytest.raises(InputError, match="use dot, cosine"):
        index.optimize(metric="lexical")


def test_search_by_the_command(index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.model.language_model.load_model", None)
    run = CliRunner().invoke(
        main, ["search", "--index", str(index.directory), "w1", "w5", "--json"]
    )
    assert run.exit_code == 0, run.output
    hits = [json.loads(line) for line in run.stdout.splitlines()]
    assert [hit["id"] for hit in hits] == [hit.id for hit in index.search("w1 w5")]
    assert hits[0]["parts"] == {"lexical": pytest.approx(hits[0]["score"])}
    run = CliRunner().invoke(main, ["search", "--index", str(index.directory), "w1"])
    assert run.exit_code == 0 and "words" in run.stdout


def test_a_query_of_another_kind_has_its_words(tmp_path: Path, lm: LanguageModel) -> None:
    rows: list[Row] = [{"text": f"{a} {b}"} for a, b in texts(40)]
    format = FormatConfig(text_field="text")
    index, _ = InfluenceIndex.build(tmp_path / "t", rows, lm, format=format, vector=VECTOR)
    with index:
        expected = reference([str(row.row["text"]) for row in index.rows()], "w1 w4 w9")
        query: Row = {"prompt": "w1 w4", "response": " w9"}
        found = index.query([query], 1, metric="lexical")
        assert found[0].score == pytest.approx(expected.max(), rel=1e-5)
        named = FormatConfig(
            prompt_field="q", response_field="a"
        )  # no names that tell by themselves
        for samples in (index.samples([query]), index.samples([{"q": "w1 w4", "a": " w9"}], named)):
            np.testing.assert_allclose(index.scores(samples, "lexical")[1][0], expected, rtol=1e-5)
