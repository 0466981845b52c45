"""Preferences: a chosen text minus a rejected one, in vectors, exact scores and explanations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import save_model, tiny_model, tiny_tokenizer
from numpy.typing import NDArray

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig, wrap_model
from forvalue_index.cli import main
from forvalue_index.data.field_guess import guess
from forvalue_index.data.labels import row_formatter
from forvalue_index.data.preferences import chosen_format, contrast, opposite, rejected_format
from forvalue_index.errors import InputError, RowError
from forvalue_index.model.batching import plan_batches
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.training import token_losses
from forvalue_index.records import Sample
from forvalue_index.vectors.recipe import Raw

EXACT = VectorConfig(recipe="raw", dim=2304, sketch_dim=2304, bits=16)
PAIR = FormatConfig(response_field="chosen", rejected_field="rejected", eos=False)
ROWS = [
    {"id": "a", "prompt": "who is", "chosen": " Ada", "rejected": " Bob the second"},
    {"id": "b", "prompt": "what", "chosen": " a long answer", "rejected": " no"},
    {"id": "c", "prompt": "where to", "chosen": " go there", "rejected": " go here"},
    {"id": "d", "prompt": "why", "chosen": " yes", "rejected": " maybe not"},
]


def samples_of(rows: Sequence[dict[str, Any]], format: FormatConfig) -> list[Sample]:
    formatter = row_formatter(tiny_tokenizer(), format, 64, 96, None)
    return formatter.samples([(f"row {i}", row) for i, row in enumerate(rows)])


def gradient(lm: LanguageModel, prompt: str, response: str) -> NDArray[np.float64]:
    """Autograd's gradient of a response's log-likelihood by the unembedding, a text alone."""
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, response)]
    tokens = torch.tensor([ids[0] + ids[1]])
    weight = lm.head.module.weight
    states = lm.model.model(tokens).last_hidden_state.detach()
    logits = states @ weight.T
    likely = logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[len(ids[0]) - 1 :]
    return torch.autograd.grad(likely.sum(), weight)[0].flatten().double().numpy()


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


def closeness(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_influence_is_the_difference_of_autograds_gradients(lm: LanguageModel) -> None:
    """Of rows, of contrasts as queries, and between them; also of undesirable rows."""
    pairs = samples_of(ROWS, PAIR)
    plain = samples_of(ROWS[:2], chosen_format(PAIR))
    against = [opposite(sample) for sample in plain]
    chosen = np.stack([gradient(lm, row["prompt"], row["chosen"]) for row in ROWS])
    rejected = np.stack([gradient(lm, row["prompt"], row["rejected"]) for row in ROWS])
    truth = np.concatenate([chosen - rejected, chosen[:2], -chosen[:2]])
    everything = [*pairs, *plain, *against]
    for budget in (1, 4096):
        encoder = Encoder(lm, budget)
        found = encoder.influence(everything, everything, [Raw()])
        assert closeness(found, truth @ truth.T) < 1e-4
        own = encoder.self_influence(everything, [Raw()])
        assert closeness(own, (truth * truth).sum(1)) < 1e-4
    assert closeness(truth @ truth.T, np.abs(truth @ truth.T)) > 0.1  # signs matter


def test_losses_count_against_what_is_rejected(lm: LanguageModel) -> None:
    other = rejected_format(PAIR)
    assert other is not None
    for row in ROWS:
        [pair] = samples_of([row], PAIR)
        [chosen] = samples_of([row], chosen_format(PAIR))
        [rejected] = samples_of([row], other)
        encoder = Encoder(lm)
        losses = encoder.losses([chosen, rejected]) * [chosen.n_scored, rejected.n_scored]
        expected = (losses[0] - losses[1]) / pair.n_scored
        assert encoder.losses([pair])[0] == pytest.approx(expected, rel=1e-4)
        trained = float(token_losses(lm, lm.collate([pair], [0])).detach().mean())
        assert trained == pytest.approx(expected, rel=1e-4)


def test_what_both_begin_with_is_not_scored() -> None:
    [sample] = samples_of([ROWS[2]], PAIR)
    texts = [
        "".join(tiny_tokenizer().convert_ids_to_tokens(sample.input_ids[part][sample.scored[part]]))
        for part, _ in sample.texts
    ]
    assert texts == ["there", "here"]
    assert sample.lengths == (17, 16)
    with pytest.raises(RowError, match="are the same, so nothing is preferred"):
        samples_of([ROWS[0] | {"rejected": ROWS[0]["chosen"]}], PAIR)


def test_an_opposite_is_its_own_opposite() -> None:
    for sample in (
        samples_of(ROWS[:1], PAIR)[0],
        samples_of(ROWS[:1], chosen_format(PAIR))[0],
    ):
        there = opposite(sample)
        assert there.lengths == sample.lengths[::-1]
        back = opposite(there)
        assert back.rejected == sample.rejected
        np.testing.assert_array_equal(back.input_ids, sample.input_ids)
        np.testing.assert_array_equal(back.scored, sample.scored)
    pair = samples_of(ROWS[:1], PAIR)[0]
    with pytest.raises(InputError, match="two texts can be contrasted"):
        contrast(pair, pair)


def test_texts_count_in_the_budget_of_a_batch() -> None:
    samples = samples_of(ROWS, PAIR)
    for budget in (1, 40, 80, 10_000):
        groups = plan_batches(samples, budget, same_length=False)
        assert sorted(i for group in groups for i in group) == [0, 1, 2, 3]
        for group in groups:
            longest = max(max(samples[i].lengths) for i in group)
            assert len(group) == 1 or 2 * len(group) * longest <= budget


def test_a_model_that_wants_texts_of_one_length(lm: LanguageModel) -> None:
    samples = samples_of(ROWS, PAIR)
    strict = replace(lm, padding_matters=True)
    assert strict.length_matters
    expected = Encoder(lm).influence(samples, samples, [Raw()])
    found = Encoder(strict).influence(samples, samples, [Raw()])
    assert closeness(found, expected) < 1e-5


@pytest.fixture()
def index(tmp_path: Path, model_dir: Path) -> InfluenceIndex:
    index, _ = InfluenceIndex.build(
        tmp_path / "i",
        ROWS,
        str(model_dir),
        format=replace(PAIR, key_field="id"),
        vector=EXACT,
    )
    return index


def test_vectors_exact_scores_and_terms_agree(index: InfluenceIndex) -> None:
    with index:
        query = {"id": "q", "prompt": "who", "chosen": " Ada", "rejected": " Bob"}
        [sample] = index.samples(query)
        stored = {hit.key: hit.score for hit in index.query(query, 4)}
        exact = {hit.key: hit.score for hit in index.query(query, 4, exact=True)}
        assert stored.keys() == exact.keys() == {"a", "b", "c", "d"}
        largest = max(map(abs, exact.values()))
        for key, score in exact.items():
            explanation = index.explain(sample, key)
            assert explanation.score == pytest.approx(score, rel=1e-4, abs=1e-4 * largest)
            assert explanation.sample.values.sum() == pytest.approx(explanation.score)
            assert explanation.query.rejected == len("who Ada") == sample.rejected
            assert stored[key] == pytest.approx(score, abs=0.2 * largest)
            [hit] = [hit for hit in index.query(query, 4) if hit.key == key]
            [passage] = index.contributions(sample, [hit])
            np.testing.assert_allclose(
                passage.values, explanation.sample.values, atol=1e-4 * largest
            )
        shown = [text for text, _, _ in index.explain(sample, "d").sample.shown()]
        assert "".join(shown) == "why yes\n[rejected] why maybe not"


def test_why_this_and_not_that(index: InfluenceIndex) -> None:
    """The contrast's score is the difference of the two queries' scores."""
    with index:
        plain = FormatConfig()
        query = {"prompt": "who", "response": " Ada"}
        one = index.query(query, 4, exact=True, format=plain)
        other = index.query(query | {"response": " Bob"}, 4, exact=True, format=plain)
        by_key = {hit.key: hit.score for hit in other}
        expected = {hit.key: hit.score - by_key[hit.key] for hit in one}
        sample = index.instead(query, " Bob", format=plain)
        found = {hit.key: hit.score for hit in index.query(sample, 4, exact=True)}
        largest = max(map(abs, expected.values()))
        for key, score in expected.items():
            assert found[key] == pytest.approx(score, abs=1e-4 * largest)
        answer = index.respond("who")
        text = answer.row["chosen"]
        assert index.instead(answer, text + "!").n_scored >= 1
        narrowed = index.part(index.instead(query, " Bob", format=plain), "Ada")
        assert narrowed.n_scored == 3 and narrowed.rejected is not None


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt_field": "prompt", "response_field": "chosen", "rejected_field": "rejected"},
        ),
        ({"chosen": "a", "rejected": "b"}, {"text_field": "chosen", "rejected_field": "rejected"}),
        (
            {"prompt": "p", "chosen": [{"role": "user"}], "rejected": [{"role": "user"}]},
            {"messages_field": "chosen", "rejected_field": "rejected"},
        ),
        (
            {"prompt": [{"role": "user"}], "chosen": [{"role": "a"}], "rejected": [{"role": "a"}]},
            {
                "prompt_field": "prompt",
                "response_field": "chosen",
                "rejected_field": "rejected",
                "chat": True,
            },
        ),
        (
            {"prompt": "p", "completion": "a", "label": False},
            {
                "prompt_field": "prompt",
                "response_field": "completion",
                "desirable_field": "label",
            },
        ),
        (
            {"prompt": "p", "completion": "a", "label": 3},
            {"prompt_field": "prompt", "response_field": "completion"},
        ),
    ],
)
def test_forms_are_guessed(row: dict[str, Any], settings: dict[str, str]) -> None:
    assert guess(row)[0] == settings


def test_implicit_prompts_give_the_same_vectors(lm: LanguageModel) -> None:
    """With the prompt in both texts, as with the prompt beside them."""
    whole = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in ROWS]
    implicit = samples_of(whole, replace(PAIR, text_field="chosen"))
    for one, other in zip(implicit, samples_of(ROWS, PAIR), strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.scored, other.scored)


def test_two_conversations(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    )
    format = FormatConfig(messages_field="chosen", rejected_field="rejected")
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "so"},
    ]
    row = {
        "chosen": [*talk, {"role": "assistant", "content": "ok"}],
        "rejected": [*talk, {"role": "assistant", "content": "no no"}],
    }
    [sample] = row_formatter(tokenizer, format, 256, 96, None).samples([("row 1", row)])
    texts = [
        tokenizer.decode(sample.input_ids[part][sample.scored[part]]) for part, _ in sample.texts
    ]
    assert texts == ["ok</s>", "no no</s>"]


def test_a_prompt_and_two_answers_that_are_messages() -> None:
    """TRL's explicit form gives the tokens of two whole conversations."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    )
    prompt = [{"role": "user", "content": "hi"}]
    row = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "ok"}],
        "rejected": [{"role": "assistant", "content": "no no"}],
    }
    whole = {name: prompt + row[name] for name in ("chosen", "rejected")}
    made = []
    for own in (row, whole):
        formatter = row_formatter(tokenizer, FormatConfig(**guess(own)[0]), 256, 96, None)
        made += formatter.samples([("row 1", own)])
    np.testing.assert_array_equal(made[0].input_ids, made[1].input_ids)
    np.testing.assert_array_equal(made[0].scored, made[1].scored)
    assert made[0].rejected == made[1].rejected and made[0].n_scored > 2


@pytest.mark.parametrize("value", [False, 0, "false", "False"])
def test_an_undesirable_row_counts_against(lm: LanguageModel, value: Any) -> None:
    format = FormatConfig(desirable_field="label")
    row = {"prompt": "a", "response": " b c"}
    [wanted, unwanted] = samples_of([row | {"label": True}, row | {"label": value}], format)
    found = Encoder(lm).influence([wanted, unwanted], [wanted, unwanted], [Raw()])
    assert found[0, 0] > 0
    np.testing.assert_allclose(found, found[0, 0] * np.array([[1, -1], [-1, 1]]), rtol=1e-4)
    with pytest.raises(RowError, match="neither true nor false"):
        samples_of([row | {"label": "so so"}], format)


def test_the_command_line(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama", 0)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run = CliRunner().invoke
    shown = run(main, ["preview", str(file), "--model", str(model), "-n", "1"])
    assert "chosen: who is ⟦Ada</s>⟧" in shown.output, shown.output
    assert "rejected: who is ⟦Bob the second</s>⟧" in shown.output
    small = ["--dim", "32", "--sketch-dim", "256", "--key-field", "id"]
    built = run(
        main, ["build", str(file), "--index", str(tmp_path / "i"), "--model", str(model), *small]
    )
    assert built.exit_code == 0, built.output
    assert "'chosen' preferred to 'rejected'" in built.output
    ask = ["--index", str(tmp_path / "i"), "--prompt", "who"]
    typed = [*ask, "--response", " Ada", "--instead", " Bob"]
    found = run(main, ["query", *typed, "-k", "1", "--exact"])
    assert found.exit_code == 0, found.output
    assert "Ada — not:  Bob" in found.output.replace("\n", "")
    assert " — not: " in found.output.splitlines()[-2]
    line = json.loads(run(main, ["explain", *typed, "--key", "a", "--json"]).stdout)
    assert line["query"]["rejected"] == len("who Ada") + 1  # the end token
    assert line["score"] == pytest.approx(np.sum(line["terms"]))
    asked = run(main, ["ask", *ask, "--instead", "x", "--max-new-tokens", "4", "--json"])
    assert asked.exit_code == 0, asked.output
    assert "rejected" in json.loads(asked.stdout)["hits"][0]
    wrong = run(main, ["query", "--index", str(tmp_path / "i"), "--data", "x", "--instead", "b"])
    assert wrong.exit_code == 2 and "--rejected-field" in wrong.output
