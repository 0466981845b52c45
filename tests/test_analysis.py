"""The analyses against plain computations on a tiny index."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import tiny_model

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.baselines import bm25
from forvalue_index.analysis.evaluate.exact import exact_scores, reranked
from forvalue_index.analysis.evaluate.fidelity import fidelity
from forvalue_index.analysis.evaluate.methods import all_stored
from forvalue_index.analysis.evaluate.metrics import (
    Figure,
    hit,
    kept,
    pearson,
    reciprocal_rank,
    spearman,
)
from forvalue_index.analysis.evaluate.recall import gold_of, recall, source_figures
from forvalue_index.errors import DependencyError, InputError, RowError
from forvalue_index.model.embedding import embedding
from forvalue_index.records import Row, Sample

N, GROUPS = 120, 8
WORDS = ("ax", "bee", "cow", "dune", "elm", "fog", "gold", "hay", "ink", "jar", "kit", "lake")


def make_rows(count: int, seed: int) -> list[Row]:
    """Rows whose response tells their group, more or less."""
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        prompt, noise = generator.choice(WORDS, 3), generator.choice(WORDS)
        response = f" {WORDS[i % GROUPS]} {noise}"
        rows.append(
            {"prompt": " ".join(prompt) + f" {i}", "response": response, "group": i % GROUPS}
        )
    return rows


TRAIN, QUERIES = make_rows(N, 0), make_rows(10, 1)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Iterator[InfluenceIndex]:
    path = tmp_path_factory.mktemp("analysis") / "index"
    vector = VectorConfig(recipe="raw", dim=256, sketch_dim=256)
    with InfluenceIndex.build(path, TRAIN, str(model_dir), vector=vector)[0] as index:
        yield index


@torch.no_grad()
def explicit(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """G of every sample, flattened [n, v d], and its mean hidden state [n, d], one at a time."""
    model = tiny_model("llama").double()
    matrices, means = [], []
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        out = model(input_ids=ids, output_hidden_states=True)
        places = torch.from_numpy(np.flatnonzero(sample.scored))
        hidden = out.hidden_states[-1][0, places - 1]
        errors = -torch.softmax(out.logits[0, places - 1], -1)
        errors[torch.arange(len(places)), ids[0, places]] += 1
        matrices.append((errors.T @ hidden).flatten().numpy())
        means.append(hidden.mean(0).numpy())
    return np.stack(matrices), np.stack(means)


def test_fidelity_against_explicit_gradients(index: InfluenceIndex) -> None:
    queries = index.samples(QUERIES)
    ids, stored = index.scores(queries)
    asked, there = explicit(queries)[0], explicit(index.training_samples(ids.tolist()))[0]
    exact = asked @ there.T
    lengths = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(there, axis=1)
    result = fidelity(index, QUERIES)
    assert (result.queries, result.samples, result.bytes_per_sample) == (
        *(10, N),
        index.flat.codes.size,
    )

    def best(scores: np.ndarray, k: int) -> set[int]:
        return set(np.argsort(-scores)[:k].tolist())

    pairs = list(zip(exact, stored, strict=True))
    by_rank = [tuple(scores.argsort().argsort() for scores in pair) for pair in pairs]
    wanted = {
        "pearson": [np.corrcoef(e, s)[0, 1] for e, s in pairs],
        "spearman": [np.corrcoef(e, s)[0, 1] for e, s in by_rank],
        "overlap_10": [len(best(e, 10) & best(s, 10)) / 10 for e, s in pairs],
        "overlap_100": [len(best(e, 100) & best(s, 100)) / 100 for e, s in pairs],
        "top_10_in_100": [len(best(e, 10) & best(s, 100)) / 10 for e, s in pairs],
        "error": np.sqrt((((stored - exact) / lengths) ** 2).mean(1)),
    }
    for name, values in wanted.items():
        figure = getattr(result, name)
        assert figure.n == 10
        assert figure.mean == pytest.approx(np.mean(values), rel=1e-3), name
        assert figure.sd == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-6), name
        assert figure.se == pytest.approx(figure.sd / math.sqrt(10)), name
    assert 0.2 < result.overlap_10.mean < 1  # or nothing could have gone wrong
    assert 0.01 < result.error.mean < 0.2


def test_fidelity_on_a_sample(index: InfluenceIndex) -> None:
    some, again = (fidelity(index, QUERIES, sample=50, seed=3) for _ in range(2))
    assert some == again
    assert some != fidelity(index, QUERIES, sample=50, seed=4)
    assert some.samples == 50
    assert some.overlap_100 == Figure(None, None, None, 0)  # 100 of 50 says nothing
    assert some.overlap_10.n == 10
    assert fidelity(index, QUERIES, sample=10_000) == fidelity(index, QUERIES)


def test_recall_against_plain_loops(index: InfluenceIndex) -> None:
    queries = index.samples(QUERIES)
    ids, stored = index.scores(queries)
    result = recall(index, QUERIES, "group", exact=True)
    n_scored = np.array([sample.scored.sum() for sample in index.training_samples(ids.tolist())])
    exact = exact_scores(index, queries, ids)
    vectors = explicit(index.training_samples(ids.tolist()))[0]
    lengths = np.linalg.norm(vectors, axis=1)
    kept = index.flat.vectors(ids).astype(np.float64)
    moment = kept.T @ kept / len(kept)
    damping = np.trace(moment @ moment) / np.trace(moment)
    turned = np.linalg.solve(moment + damping * np.eye(len(moment)), index.vectors(queries).T).T
    decorrelated = damping * turned @ kept.T
    scores = {
        "stored dot": stored,
        "stored cosine": stored
        / [row.norm for row in index.store.catalog.samples(ids.tolist()).values()],
        "stored per-token": stored / n_scored,
        "stored decorrelated": decorrelated,
        "stored hybrid": index.scores(queries, "hybrid")[1],  # which test_words.py checks
        "exact dot": exact.scores,
        "exact cosine": exact.scores / lengths,
        "exact per-token": exact.scores / n_scored,
    }
    seen = set()
    for name, matrix in scores.items():
        values: dict[str, list[float]] = {
            "mrr": [],
            "hit_1": [],
            "hit_10": [],
            "auc": [],
            "recall": [],
        }
        for query, row in zip(QUERIES, matrix, strict=True):
            truth = [TRAIN[i]["group"] == query["group"] for i in np.argsort(-row)]
            places = [place for place, gold in enumerate(truth, 1) if gold]
            n, others = len(places), len(truth) - len(places)
            values["mrr"].append(1 / places[0])
            values["hit_1"].append(places[0] == 1)
            values["hit_10"].append(places[0] <= 10)
            values["auc"].append(
                sum(others - (p - i) for i, p in enumerate(places, 1)) / n / others
            )
            values["recall"].append(sum(truth[:n]) / n)
        for metric, numbers in values.items():
            figure = getattr(result.methods[name], metric)
            assert figure.mean == pytest.approx(np.mean(numbers), rel=1e-5), (name, metric)
            assert figure.sd == pytest.approx(np.std(numbers, ddof=1), rel=1e-5)
        seen.add(result.methods[name].auc.mean)
    assert len(seen) > 3  # the ways to rank are different ones
    besides = ["last-layer gradient", "bm25", "embedding", "loss", "length", "random"]
    assert list(result.methods) == [*scores, *besides]
    assert result.methods["bm25"].auc.mean > 0.6 > result.methods["random"].auc.mean
    assert result.sources.mean == N / GROUPS


def test_loss_and_length_put_the_most_first(index: InfluenceIndex) -> None:
    stored = all_stored(index)
    methods = recall(index, QUERIES[:1], "group").methods
    gold = np.array([item.row["group"] == 0 for item in stored])
    for name, values in (
        ("loss", [item.loss for item in stored]),
        ("length", [item.n_tokens for item in stored]),
    ):
        wins = [
            (a > b) + (a == b) / 2 for a in np.array(values)[gold] for b in np.array(values)[~gold]
        ]
        assert methods[name].auc.mean == pytest.approx(np.mean(wins))


def test_embedding_is_the_cosine_of_mean_states(index: InfluenceIndex) -> None:
    queries, samples = index.samples(QUERIES), index.training_samples(index.flat.ids.tolist())
    a, b = (
        means / np.linalg.norm(means, axis=1, keepdims=True)
        for means in (explicit(queries)[1], explicit(samples)[1])
    )
    np.testing.assert_allclose(
        embedding(index.session.encoder, queries, samples), a @ b.T, atol=1e-5
    )
    assert np.std(a @ b.T) > 1e-2


def test_bm25_is_lucenes_formula() -> None:
    texts = ["The cat, the dog", "A dog", "Nothing here at all", ""]
    documents = [["the", "cat", "the", "dog"], ["a", "dog"], ["nothing", "here", "at", "all"], []]
    mean = sum(map(len, documents)) / 4
    for query in (["dog"], ["the", "cat", "dog"]):
        for i, document in enumerate(documents):
            wanted = 0.0
            for word in query:
                n = sum(word in other for other in documents)
                idf = math.log(1 + (4 - n + 0.5) / (n + 0.5))
                tf = Counter(document)[word]
                wanted += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
            assert bm25([" ".join(query).upper()], texts)[0, i] == pytest.approx(wanted, rel=1e-5)
    assert not bm25(["?", "zebra"], texts).any()
    assert not bm25(["dog"], ["", "!"]).any()


def test_without_bm25s_the_error_says_what_to_install(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(DependencyError, match=r'pip install "forvalue-index\[eval\]"'):
        recall(index, QUERIES, "group")


def test_gold_needs_the_field_and_something_to_find(index: InfluenceIndex) -> None:
    stored = all_stored(index)

    def gold(query: Row, field: str = "group") -> Any:
        return gold_of(index.samples(query), stored, field)

    assert gold(QUERIES[0]).tolist() == [[row["group"] == 0 for row in TRAIN]]
    bare = {"prompt": "a", "response": " b"}
    with pytest.raises(RowError, match=r"row 1: no field 'group'; .* are: prompt, response"):
        gold(bare)
    with pytest.raises(InputError, match=r"row 1: no training row has group = 99"):
        gold(bare | {"group": 99})
    with pytest.raises(InputError, match=r"row 1: no training row has group = \"0\""):
        gold(bare | {"group": "0"})
    with pytest.raises(InputError, match=r"training rows: no field 'kind'"):
        gold(bare | {"kind": 1}, "kind")
    with pytest.raises(InputError, match="every training row has group = 0"):
        gold_of(index.samples(QUERIES[0]), [stored[0], stored[GROUPS]], "group")


def test_ties_are_not_won_by_the_order_of_the_rows() -> None:
    gold = np.zeros((1, 1000), dtype=bool)
    gold[0, :10] = True
    result = source_figures(np.zeros((1, 1000)), gold)
    assert result.mrr.mean < 0.5
    assert result.recall.mean < 0.5
    assert result.auc.mean == 0.5


def test_reranking_orders_the_candidates_and_leaves_the_rest() -> None:
    stored = np.float32([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]])
    exact = np.float32([[1, 3, 2, 9, 9], [9, 0, 1e-9, 3e-9, 2e-9]])
    order = np.argsort(-reranked(stored, exact, 3), axis=1)
    assert order.tolist() == [[1, 2, 0, 3, 4], [3, 4, 2, 1, 0]]
    assert np.argsort(-reranked(stored, exact, 99), axis=1).tolist()[1] == [0, 3, 4, 2, 1]


def test_small_metrics() -> None:
    assert reciprocal_rank([1, 3, 2], [True, False, False]) == pytest.approx(1 / 3)
    assert [hit([1, 3, 2], [False, False, True], k) for k in (1, 2)] == [0, 1]
    assert kept([4, 3, 2, 1], [1, 3, 4, 2], 2) == 0.5
    assert kept([4, 3, 2, 1], [1, 3, 4, 2], 1, among=3) == 0
    assert math.isnan(kept([2, 1], [1, 2], 2))
    assert spearman([1, 2, 3, 3], [1, 10, 100, 100]) == pytest.approx(1)
    assert pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(pearson([1, 1], [1, 2]))
    assert Figure.of([1.0, 3.0, float("nan")]) == Figure(2.0, math.sqrt(2), 1.0, 2)
    assert Figure.of([4.0]) == Figure(4.0, None, None, 1)
    with pytest.raises(ValueError, match="needs a positive"):
        reciprocal_rank([1.0], [False])


@pytest.fixture()
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    import bench_recall

    return bench_recall


def test_exchanged_responses_leave_their_class(bench: Any) -> None:
    rows = [
        {"class": c, "response": f"{c} {i}"}
        for c, n in (("a", 20), ("b", 10), ("c", 10))
        for i in range(n)
    ]
    changed = bench.exchange(rows, np.random.default_rng(0))
    wrong = [row for row in changed if not row["clean"]]
    assert Counter(row["class"] for row in wrong) == {"a": 4, "b": 2, "c": 2}
    assert all(row["response"][0] != row["class"] for row in wrong)
    assert all(
        new["response"] == old["response"]
        for new, old in zip(changed, rows, strict=True)
        if new["clean"]
    )
    assert sorted(row["response"] for row in changed) == sorted(row["response"] for row in rows)


def test_a_study_measures_every_recipe_and_size(
    bench: Any, index: InfluenceIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = bench.judge_sources("group", ("mrr", "auc"))
    task = bench.Task("recall", "x", 0, index.lm, TRAIN, QUERIES, FormatConfig(), judge, k=N)
    results = list(bench.measure(task, ["raw"], ["dot"], VectorConfig(sketch_dim=512)))
    figures = {result.vectors: result.figures for result in results if result.method == "raw"}
    assert list(figures) == ["exact", "4 KB", "2 KB", "2 KB + exact", "1 KB"]
    assert figures["2 KB + exact"] == figures["exact"]  # all were candidates
    assert figures["1 KB"] != figures["exact"]
    file = tmp_path / "results.jsonl"
    bench.keep(file, [asdict(result) for result in results])
    # What is in the file is shown and not measured again, with whatever settings.
    bench.run(iter([task]), ["kfac"], ["dot"], VectorConfig(), file)
    out = capsys.readouterr().out
    assert "2 KB + exact" in out
    assert "embedding" in out
    assert "kfac" not in out
