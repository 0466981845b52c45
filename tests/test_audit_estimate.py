"""How many rows an audit says are wrong, against planted truths; prompts that are a word apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.audit.audit import audit
from forvalue_index.analysis.audit.estimate import Estimate, estimate
from forvalue_index.analysis.audit.exchange import exchanged_samples
from forvalue_index.analysis.audit.prompts import _words, bare, read_prompts
from forvalue_index.analysis.audit.review import verdict
from forvalue_index.analysis.audit.twins import word_apart
from forvalue_index.analysis.evaluate.mislabel import corrupt
from forvalue_index.records import Row

SHARED = Path(__file__).parents[1] / "../shared"


def planted(share: float, apart: float, trusted: int = 0, n: int = 600, seed: int = 0) -> Estimate:
    """The estimate of rows whose signs are normal, those of wrong ones `apart` higher."""
    rng = np.random.default_rng(seed)

    def signs(count: int, wrong: float) -> np.ndarray[Any, Any]:
        moved = np.arange(count) < round(wrong * count)
        return rng.normal(size=(count, 2)) + apart * moved[:, None]

    rows, exchanged, known = signs(n, share), signs(n // 2, 1), signs(trusted, 0)
    return estimate(rows, exchanged, known, rows.sum(1), exchanged.sum(1))


@pytest.mark.parametrize("trusted", [0, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_planted_rows_is_told(trusted: int, seed: int) -> None:
    none = planted(0, 2.5, trusted, seed=seed)
    assert none.few and none.share is not None and none.share < 0.03
    assert none.precision == {}
    for share in (0.2, 0.5) if trusted else (0.2, 0.3):
        found = planted(share, 2.5, trusted, seed=seed)
        assert found.share == pytest.approx(share, rel=0.2)
        assert not found.few
        assert found.low is not None and found.high is not None
        assert found.low < share < found.high
        # Two signs, N(0, 1) and N(2.5, 1): 2.5 standard deviations of the difference.
        worse = 0.9938 * (1 if trusted else 1 - share) + (0 if trusted else share / 2)
        assert found.separation == pytest.approx(worse, abs=0.03)
        assert found.precision[10] == pytest.approx(1, abs=0.35)  # of 10 in 300
    sample = planted(0.1, 2.5, trusted, n=1200, seed=seed)
    true = 0.1 * 1200 / 500  # all wrong rows are among the first 500
    assert sample.precision[500] == pytest.approx(true, rel=0.25)


def test_trusted_rows_tell_apart_what_only_looks_wrong() -> None:
    rng = np.random.default_rng(0)

    def right(count: int) -> np.ndarray[Any, Any]:  # an eighth of the right rows look wrong
        return rng.normal(size=(count, 2)) + 3 * (np.arange(count) % 8 == 0)[:, None]

    rows, wrong = right(800), rng.normal(size=(400, 2)) + 3
    alone = estimate(rows, wrong, right(0), rows.sum(1), wrong.sum(1))
    helped = estimate(rows, wrong, right(200), rows.sum(1), wrong.sum(1))
    assert alone.share is not None and helped.share is not None
    assert alone.share > 0.1
    assert helped.share < 0.05 and helped.few
    assert (alone.trusted, helped.trusted) == (0, 200)


def test_what_cannot_be_told_is_not_told() -> None:
    # Of 70 % wrong rows it cannot be told, without trusted rows, whether the signs say anything.
    for found in (planted(0.2, 0.2), planted(0, 0), planted(0, 0.5, 100), planted(0.7, 3)):
        assert found.share is None and found.separation is not None
        assert "their scores do not tell" in verdict(found)
        assert ("(--trusted) may tell" in verdict(found)) == (not found.trusted)
    assert planted(0.7, 3, 100).share == pytest.approx(0.7, rel=0.1)
    few = planted(0.2, 3, n=29)
    assert few.share is None and "too few rows" in verdict(few)


def test_the_verdict_in_words() -> None:
    found = Estimate(300, 0.17, 0.07, 0.23, 0.96, 0, {10: 1.0, 50: 0.79})
    assert verdict(found) == (
        "About 51 (17%; 21 to 69) have a response that belongs to another prompt: 100% of the "
        "first 10, 79% of the first 50. Right rows that the model cannot judge count as wrong "
        "here: 30 or more trusted rows (--trusted) tell them apart"
    )
    none = replace(found, share=0.02, low=0.0, high=0.04, trusted=60)
    assert verdict(none) == (
        "Few or none have a response that belongs to another prompt (at most 12)"
    )


def rows_of(count: int) -> list[Row]:
    words = ("ax bee", "cow dune", "elm fog", "gold hay")
    answers = (" alpha", " zzz", " mom 11", " QED")
    rng = np.random.default_rng(0)
    noise = ("".join(rng.choice([*"abcdefgh"], 3)) for _ in range(count))
    return [
        {"prompt": f"{words[i % 4]} {x} {words[i % 4]}:", "response": f"{answers[i % 4]} {x[0]}"}
        for i, x in enumerate(noise)
    ]


def test_exchanged_rows_have_a_prompt_and_the_response_of_another(
    tmp_path: Path, model_dir: Path
) -> None:
    vector = VectorConfig(dim=64, sketch_dim=256)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows_of(60), str(model_dir), vector=vector)
    with index:
        ids = index.snapshot.ids
        found, places, alone = exchanged_samples(index, ids, read_prompts(index, ids)[0])
        assert len(found) == len(places) > 40
        true = index.passes.losses([bare(sample, index.lm.tokenizer) for sample in found])
        whole = ~np.isnan(alone)  # the others are cut
        assert whole.sum() > 20
        np.testing.assert_allclose(alone[whole], true[whole], rtol=1e-4)
        assert len(set(places.tolist())) == len(places)
        own = index.training_samples(ids[np.sort(places)].tolist())
        of = dict(zip(np.sort(places).tolist(), own, strict=True))
        responses = [sample.input_ids[sample.scored].tolist() for sample in own]
        for sample, place in zip(found, places.tolist(), strict=True):
            before, after = of[place], sample.input_ids[sample.scored].tolist()
            start = int(before.scored.argmax())
            assert sample.input_ids[:start].tolist() == before.input_ids[:start].tolist()
            assert after != before.input_ids[before.scored].tolist()[: len(after)]
            assert any(response[: len(after)] == after for response in responses)
        result = audit(index).estimate
        assert result.rows == 60
        assert result.separation is not None


# -- prompts that are a word apart -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ("who wrote the old song", "who wrote the new song", True),
        ("who wrote the old song", "Who wrote the old song?", True),  # none apart
        ("who wrote the old song", "who wrote the song", True),
        ("who wrote the song", "so who wrote the song", True),
        ("who wrote the song", "who wrote the song then", True),
        ("who wrote the old song", "who sang the new song", False),
        ("who wrote the old song", "who wrote song", False),
        ("who wrote the song first", "first who wrote the song", False),
        ("what is 3 plus four", "what is 5 plus four", False),  # numbers make another question
        ("what is the sum of 3 and 4", "what was the sum of 3 and 4", True),
        ("who wrote the song Ax", "who wrote the song Bee", False),  # so do names
        ("capital of france", "capital of spain", False),  # too short
        ("", "", False),
    ],
)
def test_a_word_apart(one: str, other: str, apart: bool) -> None:
    assert word_apart(_words(one), _words(other)) is apart
    assert word_apart(_words(other), _words(one)) is apart


def test_prompts_a_word_apart_with_different_responses_are_named(
    tmp_path: Path, model_dir: Path
) -> None:
    pair = ("who wrote the old song of ax", "who wrote the new song of ax")
    slots = [f"how many legs has a {name} in all" for name in ("cow", "dog", "hen", "ant")]
    rows = [
        *({"id": f"row-{i}", "prompt": f"{i}x {i}y {i}z {i}", "response": " n"} for i in range(4)),
        {"id": "one", "prompt": pair[0], "response": " alpha"},
        {"id": "two", "prompt": pair[1], "response": " zzz"},
        {"id": "same-1", "prompt": "when did the grey fog come", "response": " QED"},
        {"id": "same-2", "prompt": "when did the dark fog come", "response": " QED"},
        *({"id": f"slot-{i}", "prompt": p, "response": f" {i} x"} for i, p in enumerate(slots)),
    ]
    index, _ = InfluenceIndex.build(
        tmp_path / "i",
        rows,
        str(model_dir),
        vector=VectorConfig(dim=64, sketch_dim=256),
        format=FormatConfig(key_field="id"),
    )
    with index:
        found = audit(index, nearly=1)
        keys = {sample.id: sample.key for sample in index.rows()}
        named = {keys[i]: keys[t.of] for i, t in found.twins.items() if "contra" in t.kind}
        assert named == {"one": "two", "two": "one"}
        reasons = {row["key"]: row["reasons"][0] for row in found.rows}
    assert reasons["two"] == ('a prompt one word apart from that of "one", with another response')


# -- on real rows ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared models and data")
@pytest.mark.parametrize("share", [0, 0.2])
def test_real_rows(tmp_path: Path, share: float) -> None:
    lines = (SHARED / "data/grammars_train.jsonl").read_text().splitlines()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(lines))
    right = [json.loads(lines[i]) | {"place": int(i)} for i in order[:300]]
    rows, wrong = corrupt(right, "answer", share, None, rng)
    format = FormatConfig(response_field="answer", max_length=300)
    model = str(SHARED / "models/mix8m")
    with InfluenceIndex.build(tmp_path / "i", rows, model, format=format)[0] as index:
        found = audit(index).estimate
    assert found.few == (share == 0), verdict(found)
    if share:
        assert found.share == pytest.approx(wrong.mean(), rel=1 / 3)
