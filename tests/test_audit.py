"""`forvalue audit`: its scores against plain computations, planted errors, and the review."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from helpers.models import tiny_model

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.audit.agreement import agreement, nearest
from forvalue_index.analysis.audit.audit import audit
from forvalue_index.analysis.audit.review import page, review
from forvalue_index.analysis.audit.scores import NEIGHBOURS, score_rows
from forvalue_index.analysis.audit.suspicion import suspicion_in
from forvalue_index.analysis.audit.unit_vectors import UnitVectors
from forvalue_index.analysis.evaluate.metrics import auc
from forvalue_index.cli import main
from forvalue_index.errors import InputError
from forvalue_index.model.encoder import Encoder
from forvalue_index.records import Row

WORDS = ("ax bee", "cow dune", "elm fog", "gold hay")
ANSWERS = (" alpha", " zzz", " mom 11", " QED")


def make_rows(count: int, wrong: int, seed: int = 0) -> list[Row]:
    """Rows whose prompt tells the response, but for the first few, which have another one's."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        kind = i % len(WORDS)
        answer = ANSWERS[(kind + 1 + i // 4 % 3) % 4] if i < wrong else ANSWERS[kind]
        noise = "".join(rng.choice([*"abcdefgh"], 3))
        rows.append(
            {
                "id": f"row-{i}",
                "prompt": f"{WORDS[kind]} {noise} {WORDS[kind]}:",
                "response": f"{answer} {noise[0]}",
                "kind": kind,
                "wrong": i < wrong,
            }
        )
    return rows


ROWS, TRUSTED = make_rows(80, 16), make_rows(24, 0, seed=1)
VECTOR = VectorConfig(dim=256, sketch_dim=512)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("audit") / "my.index"
    extra = [
        ROWS[20] | {"id": "copy"},
        ROWS[21] | {"id": "other", "response": " no"},
        ROWS[22] | {"id": "hostile", "response": "</script><img src=x onerror=alert(1)>"},
    ]
    format = FormatConfig(key_field="id")
    index, _ = InfluenceIndex.build(
        path, ROWS + extra, str(model_dir), vector=VECTOR, format=format
    )
    index.close()
    return path


@pytest.fixture()
def index(path: Path) -> Iterator[InfluenceIndex]:
    with InfluenceIndex.open(path) as index:
        yield index


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"class_field": "kind"},
        {"trusted": TRUSTED},
        {"trusted": TRUSTED, "class_field": "kind"},
    ],
)
def test_exchanged_responses_are_found(index: InfluenceIndex, settings: dict[str, Any]) -> None:
    scores = score_rows(index, **settings).scores
    wrong = np.array([row["wrong"] for row in ROWS])
    found = {name: auc(score[: len(ROWS)], wrong) for name, score in scores.items()}
    assert found["suspicion"] > 0.9
    assert found["disagreement"] > 0.9
    assert found["suspicion"] > max(found["loss"], found["self-influence"]) + 0.1
    assert ("untrusted" in found) == ("trusted" in settings)
    if "trusted" in settings:
        assert found["untrusted"] > 0.9


def test_conditions_leave_the_others_out(index: InfluenceIndex) -> None:
    every, some = audit(index), audit(index, where=["kind=1"])
    stored = index.store.catalog.samples(every.ids.tolist())
    assert some.ids.tolist() == [id for id, s in stored.items() if s.row["kind"] == 1]
    np.testing.assert_array_equal(some.scores["loss"], every.scores["loss"][some.ids])
    with pytest.raises(InputError, match="1 training rows: an audit needs 3 or more"):
        audit(index, where=["id=row-7"])
    with pytest.raises(InputError, match="no training row has a field 'topic'"):
        audit(index, class_field="topic")


def test_gain_is_the_loss_that_the_prompt_takes_off(index: InfluenceIndex) -> None:
    found = audit(index)
    model = tiny_model("llama")
    for place in (3, 40, 82):
        sample = index.training_samples([int(found.ids[place])])[0]
        response = sample.input_ids[sample.scored].astype(np.int64)
        losses = []
        for before in (sample.input_ids[~sample.scored].astype(np.int64), np.array([1])):  # <s>
            ids = torch.from_numpy(np.concatenate([before, response]))
            with torch.no_grad():
                logits = model(ids[None]).logits[0, len(before) - 1 : -1].double()
            losses.append(torch.nn.functional.cross_entropy(logits, ids[len(before) :]).item())
        assert found.gain[place] == pytest.approx(losses[1] - losses[0], abs=1e-4)
        needless = found.scores["needless prompt"][place]
        assert needless == pytest.approx(-found.gain[place] * len(response) ** 0.5)


def test_states_are_the_mean_of_what_predicts(index: InfluenceIndex) -> None:
    samples = index.training_samples([0, 7, 30])
    model = tiny_model("llama")
    found = Encoder(index.lm).states(samples)
    for sample, mean in zip(samples, found, strict=True):
        with torch.no_grad():
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
            states = model(ids, output_hidden_states=True).hidden_states[-1][0]
        wanted = states[np.flatnonzero(sample.scored) - 1].mean(0)
        np.testing.assert_allclose(mean, wanted, rtol=1e-4, atol=1e-5)
    stored = list(index.store.catalog.samples([0, 7, 30]).values())
    losses = Encoder(index.lm).losses(samples)
    np.testing.assert_allclose(losses, [sample.loss for sample in stored], rtol=1e-5)


def test_opposition_is_to_the_mean_of_the_others(index: InfluenceIndex) -> None:
    ids = index.flat.ids
    vectors = index.flat.vectors(ids).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = UnitVectors(index.snapshot, ids).with_the_rest()
    for place in (0, 50):
        others = np.delete(vectors, place, axis=0).mean(0)
        wanted = vectors[place] @ others / np.linalg.norm(others)
        assert found[place] == pytest.approx(wanted, abs=1e-5)


def test_nearest_are_those_of_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 6)).astype(np.float32)
    classes = rng.integers(0, 3, 40)
    classes[30] = 7  # alone
    for pool in (np.arange(40), np.arange(32, 40)):
        found = nearest(states, classes, pool, 32, 4)
        for i in range(32):
            others = [j for j in pool if j != i and classes[j] == classes[i]]
            best = sorted(others, key=lambda j: -float(states[i] @ states[j]))[:4]
            assert found[i].tolist() == best + [-1] * (4 - len(best))
    assert found[30].tolist() == [-1] * 4


def test_cosines_are_of_unit_and_of_centred_vectors(index: InfluenceIndex) -> None:
    known = index.samples(TRUSTED[:2])
    ids = index.flat.ids
    near = np.array([[1, 83, -1]] + [[0, 5, 84]] * (len(ids) - 1))
    plain, centred = UnitVectors(index.snapshot, ids, index.vectors(known)).cosines(near)
    vectors = np.concatenate([index.flat.vectors(ids), index.vectors(known)]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    moved = vectors - vectors[: len(ids)].mean(0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    for i, k in ((0, 0), (0, 1), (9, 1), (60, 2)):
        assert plain[i, k] == pytest.approx(vectors[i] @ vectors[near[i, k]], abs=1e-5)
        assert centred[i, k] == pytest.approx(moved[i] @ moved[near[i, k]], abs=1e-5)
    assert (plain[0, 2], centred[0, 2]) == (0, 0)


def test_agreement_relies_on_those_that_agree() -> None:
    # Rows 0-3 agree with each other; 4 and 5 with nobody, though all are neighbours.
    near = np.array([[j for j in range(6) if j != i] for i in range(6)])
    matrix = np.full((6, 6), -0.5, np.float32)
    matrix[:4, :4] = 0.8
    centred = np.take_along_axis(matrix, near, 1)
    found = agreement(centred, near)
    np.testing.assert_allclose(found[:4], 0.8, rtol=1e-6)
    np.testing.assert_allclose(found[4:], -0.5, rtol=1e-6)
    # A trusted row (6) is relied on, whatever the others say.
    near = np.concatenate([near, np.full((6, 1), 6)], 1)
    centred = np.concatenate([centred, np.float32([[0], [0], [0], [0], [-1], [-1]])], 1)
    np.testing.assert_allclose(agreement(centred, near)[4], (-0.5 * 4 - 1) / 5, rtol=1e-6)
    assert agreement(np.zeros((2, 1), np.float32), np.array([[-1], [0]])).tolist() == [0, 0]


def test_a_score_counts_by_how_far_the_usual_row_is_from_zero() -> None:
    rng = np.random.default_rng(0)
    telling, noise, loss = -5 + rng.normal(size=99), rng.normal(size=99) + 1, rng.normal(size=99)
    both = {"disagreement": telling, "needless prompt": noise}
    assert np.argsort(suspicion_in(both, loss)).tolist() == np.argsort(telling).tolist()
    flat = {"disagreement": noise, "needless prompt": np.zeros(99)}
    assert np.corrcoef(suspicion_in(flat, loss), noise)[0, 1] > 0.9  # nothing tells: all count
    alone = suspicion_in({"disagreement": telling}, loss)  # without prompts
    ranks = sum(np.argsort(np.argsort(score)) / 98 for score in (telling, loss)) / 2
    np.testing.assert_allclose(alone, ranks)


def test_rows_that_stand_twice_are_named(index: InfluenceIndex) -> None:
    found = audit(index, nearly=0.999)
    keys = {sample.id: sample.key for sample in index.rows()}
    twins = {keys[id]: (twin.kind, keys[twin.of]) for id, twin in found.twins.items()}
    assert twins["copy"] == ("duplicate", "row-20")
    assert twins["other"] == ("contradiction", "row-21")
    assert twins["row-21"] == ("contradiction", "other")
    assert "row-20" not in twins
    near = audit(index, nearly=0.5).twins
    assert {twin.kind for twin in near.values()} == {"duplicate", "contradiction", "near-duplicate"}
    for id, twin in near.items():
        assert twin.kind != "near-duplicate" or twin.of < id
        if twin.kind == "near-duplicate":
            vectors = index.flat.vectors(np.array([id, twin.of])).astype(np.float64)
            cosine = vectors[0] @ vectors[1] / np.prod(np.linalg.norm(vectors, axis=1))
            assert twin.cosine == pytest.approx(cosine, abs=1e-5) and cosine >= 0.5


def test_plain_text_has_no_prompt(tmp_path: Path, model_dir: Path) -> None:
    rows = [{"text": f"{row['prompt']}{row['response']}"} for row in ROWS[:40]]
    format = FormatConfig(text_field="text")
    with InfluenceIndex.build(
        tmp_path / "text", rows, str(model_dir), vector=VECTOR, format=format
    )[0] as index:
        found = audit(index)
    assert "needless prompt" not in found.scores
    assert np.isnan(found.gain).all()
    assert all(np.isfinite(score).all() for score in found.scores.values())
    assert all(twin.kind != "contradiction" for twin in found.twins.values())


# -- the review ------------------------------------------------------------------------------------


def test_every_row_has_its_reasons(index: InfluenceIndex) -> None:
    found = audit(index, trusted=TRUSTED)
    rows = review(index, found, 60)
    order = [row["suspicion"] for row in rows]
    assert order == sorted(order, reverse=True)
    assert len([row for row in rows if row["kind"] == "suspect"]) <= 60
    assert {row["key"] for row in rows} >= {"copy", "other", "row-21"}
    assert all(row["reasons"] for row in rows)
    words = {row["key"]: row["reasons"] for row in rows}
    assert words["other"][0] == 'the same prompt as "row-21", with another response'
    assert words["copy"][0] == 'the same prompt and response as "row-20"'
    every = "\n".join(reason for row in rows for reason in row["reasons"])
    assert re.search(r"disagrees with rows that have similar prompts \(agreement -0\.\d\d, ", every)
    assert re.search(r"the prompt (takes|adds) \d+\.\d\d nats per token (off|to) ", every)
    assert re.search(r"disagrees with trusted rows that have similar prompts", every)


def test_a_row_without_a_reason_is_no_suspect(index: InfluenceIndex) -> None:
    found = audit(index)
    suspects = [row for row in review(index, found, len(found.ids)) if row["kind"] == "suspect"]
    assert all(row["reasons"] for row in suspects)
    assert 0 < len(suspects) < len(found.ids) / 2
    first = review(index, found, 3)
    assert [row["id"] for row in first if row["kind"] == "suspect"] == [
        row["id"] for row in suspects if row["suspicion"] >= np.sort(found.scores["suspicion"])[-3]
    ]


def test_the_page_shows_hostile_rows_as_text(index: InfluenceIndex) -> None:
    rows = review(index, audit(index), 99)
    html = page(rows, index.config.format, "<b>83</b> rows")
    assert "onerror=alert(1)" in html  # as data
    assert "<img" not in html
    assert "<b>83" not in html
    assert html.count("</script>") == 2
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert not re.search(r"https?:|innerHTML|insertAdjacent|document\.write|eval\(", html)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert [row["key"] for row in json.loads(data[1])] == [row["key"] for row in rows]


def test_a_row_of_another_kind_is_shown_as_json(index: InfluenceIndex) -> None:
    rows = review(index, audit(index), 1)[:1]
    html = page(rows, replace(index.config.format, response_field="gone"), "rows")
    assert "row-" in html


# -- the command -----------------------------------------------------------------------------------


def run(path: Path, *arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, ["audit", "--index", path, *arguments])))


def test_audit_as_json_and_files(path: Path, tmp_path: Path, index: InfluenceIndex) -> None:
    trusted = tmp_path / "trusted.jsonl"
    trusted.write_text("".join(json.dumps(row) + "\n" for row in TRUSTED))
    table, html = tmp_path / "review.csv", tmp_path / "review.html"
    arguments = ("--trusted", trusted, "--class-field", "kind", "--top", 10)
    result = run(path, *arguments, "--output", table, "--html", html, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    found = audit(index, trusted=TRUSTED, class_field="kind")
    wanted = review(index, found, 10)
    assert [row["key"] for row in rows] == [row["key"] for row in wanted]
    assert [row["reasons"] for row in rows] == [row["reasons"] for row in wanted]
    with table.open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["key"] for row in cells] == [row["key"] for row in rows]
    assert cells[0]["reasons"] == "; ".join(rows[0]["reasons"])
    assert cells[0]["sample.prompt"] == rows[0]["sample"]["prompt"]
    assert html.read_text().startswith("<!doctype html>")


def test_audit_for_people(path: Path) -> None:
    result = run(path, "--top", 8, "-k", 3)
    assert result.exit_code == 0, result.stderr
    assert "reasons" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert re.search(r"(About|Few or none|How many rows are wrong)", result.stdout)
    assert re.fullmatch(r"83 training rows: .*\b4 contradictions\b.*", last.strip()), last


def test_help_says_among_how_many_near_duplicates_are_looked_for(path: Path) -> None:
    text = " ".join(run(path, "--help").stdout.split())
    assert f"among the {NEIGHBOURS} rows with the nearest prompts" in text
    assert f"among the {NEIGHBOURS} nearest prompts" in text


def test_errors_are_one_line(path: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--class-field", "topic"), "no training row has a field 'topic'"),
        (("--output", tmp_path / "r.txt"), "the name of the file must end in"),
        (("--html", tmp_path / "no" / "r.html"), "cannot be written"),
        (("--trusted", tmp_path / "gone.jsonl"), "gone.jsonl"),
    ):
        result = run(path, *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
