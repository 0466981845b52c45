"""Building, adding and opening: what is kept, what is refused, what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import save_model, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig, wrap_model
from forvalue_index.errors import (
    FingerprintError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    ModelError,
    RowError,
)
from forvalue_index.metric import DERIVED, METRICS
from forvalue_index.records import Row
from forvalue_index.search.ann import DerivedSearch
from forvalue_index.vectors.recipe import ERROR_FLOOR, Balanced

KEYED = FormatConfig(key_field="id")
SMALL = VectorConfig(dim=512, sketch_dim=512)
LINEAR = [name for name, metric in METRICS.items() if metric.linear]


@pytest.fixture()
def index(tmp_path: Path, model_dir: Path, rows: list[Row]) -> InfluenceIndex:
    return InfluenceIndex.build(
        tmp_path / "index", rows, str(model_dir), format=KEYED, vector=SMALL
    )[0]


def test_a_hit_is_the_row_as_it_was_given(index: InfluenceIndex, rows: list[Row]) -> None:
    hits = index.query(rows[3], k=5)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    assert [hit.query for hit in hits] == [0] * 5
    by_key = {row["id"]: row for row in rows}
    assert all(hit.sample == by_key[hit.key] for hit in hits)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_an_index_outlives_its_process(index: InfluenceIndex, rows: list[Row]) -> None:
    before = index.query(rows[:3], k=4)
    index.close()
    with InfluenceIndex.open(index.directory) as again:
        assert len(again) == len(rows)
        assert again.query(rows[:3], k=4) == before


def test_k_larger_than_the_index_gives_all_of_it(index: InfluenceIndex, rows: list[Row]) -> None:
    hits = index.query(rows[0], k=1000)
    assert sorted(hit.key for hit in hits) == sorted(row["id"] for row in rows)


def test_rows_that_are_there_cost_no_forward_pass(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.close()
    again = InfluenceIndex.open(index.directory)

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("forvalue_index.model.language_model.load_model", refuse)
    report = again.add(rows)
    assert (report.added, report.skipped, report.samples) == (0, 30, 30)
    with pytest.raises(AssertionError, match="the model was loaded"):
        again.add([rows[0] | {"id": "new"}])


def test_other_content_under_a_known_key_is_refused(index: InfluenceIndex, rows: list[Row]) -> None:
    with pytest.raises(KeyConflictError, match="'row-4' is already in the index"):
        index.add([{"id": "new", "prompt": "a", "response": "b"}, rows[4] | {"n": -1}])
    assert len(index) == 30


def test_a_key_that_stands_twice_is_refused(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    with pytest.raises(KeyConflictError, match="row 31: key 'row-2' already occurs at row 3"):
        InfluenceIndex.build(tmp_path / "i", [*rows, rows[2]], str(model_dir), format=KEYED)
    assert not (tmp_path / "i").exists()


def test_equal_rows_are_one_sample_when_the_content_is_the_key(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    index, report = InfluenceIndex.build(tmp_path / "i", [*rows, rows[2]], str(model_dir))
    assert (report.added, report.repeated, len(index)) == (30, 1, 30)


@pytest.mark.parametrize("bad", [{"prompt": "a"}, {"prompt": "a", "response": ""}])
def test_a_bad_row_stops_the_build_before_anything_is_written(
    tmp_path: Path, model_dir: Path, rows: list[Row], bad: Row
) -> None:
    with pytest.raises(RowError, match="row 31"):
        InfluenceIndex.build(tmp_path / "i", [*rows, bad], str(model_dir))
    assert not (tmp_path / "i").exists()


def test_a_bad_row_leaves_an_index_as_it_was(index: InfluenceIndex) -> None:
    with pytest.raises(RowError):
        index.add([{"id": "x", "prompt": "a", "response": "b"}, {"id": "y", "prompt": "a"}])
    assert len(index) == 30
    assert index.verify() == []


def test_long_rows_are_cut_and_counted(tmp_path: Path, model_dir: Path) -> None:
    rows = [{"prompt": "a" * 60, "response": "b" * 40}, {"prompt": "a", "response": "b"}]
    _, report = InfluenceIndex.build(tmp_path / "i", rows, str(model_dir))
    assert (report.added, report.truncated, report.tokens) == (2, 1, 64 + 3)  # an end in the second
    with pytest.raises(ModelError, match="max length 65 is over the model's 64 positions"):
        InfluenceIndex.build(
            tmp_path / "j", rows, str(model_dir), format=FormatConfig(max_length=65)
        )
    assert not (tmp_path / "j").exists()


def test_another_model_is_refused_with_both_hashes(
    index: InfluenceIndex, other_model_dir: Path, rows: list[Row]
) -> None:
    other = InfluenceIndex.open(index.directory, model=str(other_model_dir))
    with pytest.raises(FingerprintError, match="weights differ"):
        other.query(rows[0])
    with pytest.raises(FingerprintError):
        other.add([{"id": "x", "prompt": "a", "response": "b"}])
    assert len(other) == 30


def test_a_build_that_has_nothing_to_add_still_checks_the_model(
    index: InfluenceIndex, other_model_dir: Path, rows: list[Row], tmp_path: Path
) -> None:
    settings: Any = {"format": KEYED, "vector": SMALL}
    for other, error in (
        (str(other_model_dir), FingerprintError),
        (str(tmp_path / "nowhere"), ModelError),
    ):
        with pytest.raises(error):
            InfluenceIndex.build(index.directory, rows, other, **settings)
    assert len(index) == 30


def test_models_are_named_by_paths_or_wrapped(
    index: InfluenceIndex, other_model_dir: Path, model_dir: Path, rows: list[Row], tmp_path: Path
) -> None:
    with pytest.raises(FingerprintError):
        InfluenceIndex.open(index.directory, model=other_model_dir).query(rows[0])
    again, report = InfluenceIndex.build(
        index.directory, rows, model_dir, format=KEYED, vector=SMALL
    )
    assert report.skipped == 30 and again.query(rows[0]) == index.query(rows[0])
    bare: Any = tiny_model("llama")
    for make in (
        lambda: InfluenceIndex.open(index.directory, model=bare),
        lambda: InfluenceIndex.create(tmp_path / "i", bare),
    ):
        with pytest.raises(InputError, match=r"wrap_model.* not LlamaForCausalLM"):
            make()
    wrapped = InfluenceIndex.open(index.directory, model=wrap_model(bare, tiny_tokenizer()))
    assert wrapped.query(rows[0]) == index.query(rows[0])


def test_a_text_is_one_key_or_one_condition(index: InfluenceIndex, rows: list[Row]) -> None:
    index.add([{"id": key, "prompt": "a", "response": f" {key}"} for key in ("1", "2", "12")])
    assert index.remove("12") == 1
    assert {"1", "2"} <= {sample.key for sample in index.rows()}
    assert [sample.key for sample in index.rows("id=1")] == ["1"]
    assert {hit.key for hit in index.query(rows[0], where="id=2")} == {"2"}
    assert index.remove(where="id=1") == 1


def test_another_form_of_the_recipe_is_refused(
    index: InfluenceIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Balanced, "form", Balanced.form + 1)
    with (
        InfluenceIndex.open(index.store.directory) as other,
        pytest.raises(FingerprintError, match=r"recipe differs .*build a new index"),
    ):
        other.query({"prompt": "a", "response": " b"})


def test_one_changed_weight_is_another_model(
    index: InfluenceIndex, tmp_path: Path, rows: list[Row]
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    tiny_tokenizer().save_pretrained(tmp_path / "changed")
    with pytest.raises(FingerprintError):
        InfluenceIndex.open(index.directory, model=str(tmp_path / "changed")).query(rows[0])


def test_a_model_that_has_moved_is_the_same_model(
    index: InfluenceIndex, tmp_path: Path, rows: list[Row]
) -> None:
    copy = save_model(tmp_path / "copy", "llama", 0)
    moved = InfluenceIndex.open(index.directory, model=str(copy))
    assert moved.query(rows[0]) == index.query(rows[0])


@pytest.mark.parametrize("part", ["weights", "token"])
def test_nan_from_the_model_is_never_stored(tmp_path: Path, rows: list[Row], part: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with torch.no_grad():
        if part == "weights":
            model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
        else:  # only a row that holds the letter q meets it
            letter = tokenizer.convert_tokens_to_ids("q")
            model.model.embed_tokens.weight[letter] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(ModelError) as error:
        InfluenceIndex.build(tmp_path / "i", rows, str(tmp_path / "nan"), format=KEYED)
    assert "NaN or infinity for " in str(error.value)
    if part == "token":
        key = str(error.value).split("'")[1]
        row = next(row for row in rows if row["id"] == key)
        assert "q" in row["prompt"] + row["response"]
    assert not (tmp_path / "i").exists()


def test_a_directory_that_is_not_an_index(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match="does not exist"):
        InfluenceIndex.open(tmp_path / "nothing")
    with pytest.raises(IndexMissingError, match="is not an index"):
        InfluenceIndex.open(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(IndexMissingError, match="is a file, and an index is a folder"):
        InfluenceIndex.open(tmp_path / "rows.jsonl")


def test_a_directory_that_is_not_empty_is_left_alone(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(IndexMissingError, match="is not empty"):
        InfluenceIndex.build(tmp_path, rows, str(model_dir))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_build_goes_on(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    calls = []

    def stop(stage: str, done: int, total: int, tokens: int) -> None:
        calls.append((stage, done, total))
        if stage == "encoding" and done > 16:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"format": KEYED, "vector": SMALL}
    with pytest.raises(KeyboardInterrupt):
        InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), progress=stop, **settings)
    assert ("encoding", 8, 30) in calls
    index, report = InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), **settings)
    assert (report.added, report.skipped, len(index)) == (14, 16, 30)
    assert index.verify() == []
    whole, _ = InfluenceIndex.build(tmp_path / "j", rows, str(model_dir), **settings)
    assert [h.key for h in index.query(rows[0])] == [h.key for h in whole.query(rows[0])]
    with pytest.raises(IndexMissingError, match="dim: 512"):
        InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), format=KEYED)


def test_a_query_may_have_another_form_than_the_rows(index: InfluenceIndex) -> None:
    by_text = index.query({"words": "hello"}, k=3, format=FormatConfig(text_field="words"))
    assert len(by_text) == 3
    with pytest.raises(RowError, match="no field 'prompt'"):
        index.query({"words": "hello"})
    with pytest.raises(InputError, match="no queries in the data"):
        index.query([])
    with pytest.raises(InputError, match=r'no file Who wrote it\?: ask .* {"prompt": ..., "resp'):
        index.query("Who wrote it?")
    with pytest.raises(InputError, match="k is 0"):
        index.query({"prompt": "a", "response": "b"}, k=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such-model", "cannot load model no/such-model"), ("", "cannot load model")],
)
def test_a_model_that_is_not_there(
    tmp_path: Path, rows: list[Row], name: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        InfluenceIndex.build(tmp_path / "i", rows, name)
    assert not (tmp_path / "i").exists()


def test_a_truncated_checkpoint(tmp_path: Path, rows: list[Row]) -> None:
    path = save_model(tmp_path / "model", "llama", 0)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load model"):
        InfluenceIndex.build(tmp_path / "i", rows, str(path))
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_stay_near_float32(
    tmp_path: Path, model_dir: Path, rows: list[Row], dtype: str
) -> None:
    full, _ = InfluenceIndex.build(tmp_path / "full", rows, str(model_dir), vector=SMALL)
    half, _ = InfluenceIndex.build(
        tmp_path / "half", rows, ModelConfig(str(model_dir), dtype=dtype), vector=SMALL
    )
    assert half.lm.model.dtype == getattr(torch, dtype)
    a = full.scores(full.samples(rows))[1]
    b = half.scores(half.samples(rows))[1]
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    assert (a != b).mean() > 0.5  # they are not the same weights


def exact_scores(index: InfluenceIndex, rows: list[Row], metric: str) -> np.ndarray:
    """Scores of all rows on each other, from the exact form, in plain numpy."""
    samples = index.samples(rows)
    exact = index.influence(samples, samples).astype(np.float64)
    if metric == "cosine":
        lengths = np.sqrt(np.diagonal(exact))
    else:
        lengths = np.array([s.n_scored if metric == "per-token" else 1 for s in samples])
    return exact / np.outer(lengths, lengths)


@pytest.mark.parametrize("metric", DERIVED)
@pytest.mark.parametrize("opponents", [False, True])
def test_ranks_order_by_what_they_say(
    index: InfluenceIndex, rows: list[Row], metric: str, opponents: bool
) -> None:
    exact = exact_scores(index, rows, metric)
    column = {row["id"]: i for i, row in enumerate(rows)}
    hits = index.query(rows[:6], k=30, metric=metric, opponents=opponents)
    for hit in hits:
        scale = exact[hit.query, hit.query]
        assert hit.score == pytest.approx(exact[hit.query, column[hit.key]], abs=0.2 * scale)
    exactly = index.query(rows[:6], k=5, metric=metric, opponents=opponents, exact=True)
    for query in range(6):
        own = [hit for hit in exactly if hit.query == query]
        order = np.argsort(exact[query] if opponents else -exact[query], kind="stable")[:5]
        assert [column[hit.key] for hit in own] == order.tolist()
        scores = [hit.score for hit in own]
        np.testing.assert_allclose(scores, exact[query][order], rtol=1e-4, atol=1e-6)
    assert all(hit.exact for hit in exactly) and not any(hit.exact for hit in hits)
    if metric != "dot":
        plain = index.query(rows[:6], k=30, opponents=opponents)
        assert [hit.key for hit in plain] != [hit.key for hit in hits]


@pytest.mark.parametrize("metric", LINEAR)
def test_scores_of_all_samples_are_those_of_hits(
    index: InfluenceIndex, rows: list[Row], metric: str
) -> None:
    ids, scores = index.scores(index.samples(rows[:3]), metric)
    assert scores.shape == (3, len(index))
    place = {id: number for number, id in enumerate(ids.tolist())}
    hits = index.query(rows[:3], k=30, metric=metric)
    assert len(hits) == scores.size
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.query, place[hit.id]], rel=1e-5)


def test_exact_scores_are_those_of_float64_gradients(
    index: InfluenceIndex, rows: list[Row]
) -> None:
    """The exact form of the recipe from explicit gradients, all in float64."""
    model = tiny_model("llama").double()
    whitening = index.vectoriser.parts[0].recipe.tensors["whitening"].double()
    samples = index.samples(rows)
    gradients = []
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        at = torch.from_numpy(np.flatnonzero(sample.scored)) - 1
        errors = -torch.softmax(output.logits[0, at], -1)
        errors[torch.arange(len(at)), ids[0, at + 1]] += 1
        errors /= errors.norm(dim=1, keepdim=True) + ERROR_FLOOR
        hidden = output.hidden_states[-1][0, at] @ whitening
        gradients.append((errors.T @ hidden).flatten())
    truth = torch.stack(gradients) @ torch.stack(gradients).T
    column = {row["id"]: i for i, row in enumerate(rows)}
    for hit in index.query(rows[:5], k=10, exact=True):
        expected = float(truth[hit.query, column[hit.key]])
        assert hit.score == pytest.approx(expected, rel=1e-4)


def test_few_candidates_are_still_k_hits(index: InfluenceIndex, rows: list[Row]) -> None:
    assert len(index.query(rows[0], k=7, exact=True, candidates=2)) == 7


def test_conditions_are_met_by_exactly_k_hits(index: InfluenceIndex, rows: list[Row]) -> None:
    every = index.query(rows[0], k=30)
    hits = index.query(rows[0], k=4, where=["n>=10", "n<20"])
    wanted = [hit for hit in every if 10 <= hit.sample["n"] < 20][:4]
    assert [hit.key for hit in hits] == [hit.key for hit in wanted]
    assert len(index.query(rows[0], k=20, where=["n in 1,2,3"])) == 3
    assert index.query(rows[0], where=["n=-1"]) == []
    with pytest.raises(InputError):
        index.query(rows[0], where=["no such thing"])
    with pytest.raises(InputError, match="metric 'best' is not one of"):
        index.query(rows[0], metric="best")


def test_a_derived_index_answers_as_comparing_all_does(
    index: InfluenceIndex, rows: list[Row], caplog: pytest.LogCaptureFixture
) -> None:
    none, reason = index.optimize()
    assert none is None
    assert "30 samples can all be compared" in reason
    made, _ = index.optimize("IVF4,SQ8")
    assert made is not None
    assert made.ntotal == 30
    for opponents in (False, True):
        settings: dict[str, Any] = {"k": 5, "opponents": opponents}
        found = index.query(rows, **settings)
        flat = index.query(rows, flat=True, **settings)
        same = {(hit.query, hit.id) for hit in found} & {(hit.query, hit.id) for hit in flat}
        assert len(same) >= 0.9 * len(flat)
        scores = {(hit.query, hit.id): hit.score for hit in flat}
        for hit in found:
            if (hit.query, hit.id) in scores:
                assert hit.score == pytest.approx(scores[hit.query, hit.id], rel=1e-6)
    assert index.info()["derived"][0]["factory"] == "IVF4,SQ8"
    report = index.add([{"id": f"new-{i}", "prompt": "ab", "response": f" {i}"} for i in range(9)])
    assert report.added == 9
    assert index.info()["derived"][0]["ntotal"] == 39  # extended: over a tenth was new
    best = index.query({"id": "q", "prompt": "ab", "response": " 7"}, k=39)
    assert len({hit.key for hit in best}) == 39
    assert not caplog.records
    with pytest.raises(InputError):
        index.optimize("no such factory")


def test_an_index_that_was_asked_before_uses_what_is_derived_from_it(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.query(rows[0])
    index.optimize("IVF4,SQ8")
    search, calls = DerivedSearch.search, []

    def counted(self: DerivedSearch, *args: Any, **settings: Any) -> Any:
        calls.append(args)
        return search(self, *args, **settings)

    monkeypatch.setattr(DerivedSearch, "search", counted)
    index.query(rows[0])
    assert len(calls) == 1
    index.query(rows[0], flat=True)
    assert len(calls) == 1


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, rows: list[Row]) -> None:
    path = save_model(tmp_path / "model", "llama", 0)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 of its weights, such as model.layers.1.mlp.up_proj"
    ):
        InfluenceIndex.build(tmp_path / "i", rows, str(path))


def test_the_model_is_found_from_anywhere(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", "llama", 0)
    monkeypatch.chdir(tmp_path)
    index, _ = InfluenceIndex.build("i", rows, ModelConfig("model"), vector=SMALL)
    index.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(InfluenceIndex.open("../i").query(rows[0], k=3)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_of_half_precision_heads_are_float32(dtype: torch.dtype) -> None:
    lm = wrap_model(tiny_model("llama").to(dtype), tiny_tokenizer())
    hidden = torch.randn(5, lm.head.hidden, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(5)
    errors, losses = lm.head.errors(hidden, targets)
    logits = hidden.double() @ lm.head.module.weight.double().T
    truth = -torch.softmax(logits, -1)
    truth[torch.arange(5), targets] += 1
    torch.testing.assert_close(errors.double(), truth, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        losses.double(),
        -torch.log_softmax(logits, -1)[torch.arange(5), targets],
        rtol=1e-5,
        atol=1e-5,
    )
    assert errors.dtype == torch.float32


@pytest.mark.parametrize("name", ["q?x=1", "p%20q", "with space", "ünïcode", "#1"])
def test_an_index_may_have_any_name(
    tmp_path: Path, model_dir: Path, rows: list[Row], name: str
) -> None:
    InfluenceIndex.build(tmp_path / name, rows, str(model_dir), vector=SMALL)[0].close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with InfluenceIndex.open(tmp_path / name) as index:
        assert len(index) == 30
