"""What the model answers, attributed by the very tokens that it made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import assert_one_line, run, run_well, write
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.errors import InputError
from forvalue_index.model.generation import Sampling, complete, end_tokens
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row

PROMPT = "who wrote it"
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def language_model(end_after: int | None = None) -> LanguageModel:
    """A random model; `end_after`: one that ends its answer after so many tokens."""
    model = tiny_model("llama")
    lm = wrap_model(model, tiny_tokenizer())
    if end_after is not None:
        inner = model.generate

        def generate(*args: Any, **values: Any) -> torch.Tensor:
            output = inner(*args, **values | {"max_new_tokens": end_after + 1, "streamer": None})
            end = torch.full((1, 1), lm.tokenizer.eos_token_id)
            return torch.cat([output[:, : values["input_ids"].shape[1] + end_after], end], 1)

        model.generate = generate
    return lm


def build(path: Path, rows: list[Row], lm: LanguageModel, **format: Any) -> InfluenceIndex:
    index = InfluenceIndex.create(
        path,
        lm,
        format=FormatConfig(key_field="id", **format),
        vector=VectorConfig(dim=32, sketch_dim=256),
    )
    index.add(rows)
    return index


@pytest.fixture()
def index(tmp_path: Path, rows: list[Row]) -> InfluenceIndex:
    return build(tmp_path / "i", rows, language_model())


def greedy(lm: LanguageModel, ids: list[int], n: int) -> list[int]:
    """The most likely tokens, one forward pass of the whole text for each."""
    made: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*ids, *made]])).logits[0, -1]
        made.append(int(logits.argmax()))
        if made[-1] in end_tokens(lm):
            break
    return made


def test_the_generated_tokens_are_the_scored_ones(index: InfluenceIndex) -> None:
    words: list[str] = []
    sample = index.respond(PROMPT, Sampling(12), report=words.append)
    prompt = index.lm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    made = greedy(index.lm, prompt, 12)
    assert len(made) == 12  # it does not end before
    assert sample.input_ids.tolist() == prompt + made
    assert np.flatnonzero(sample.scored).tolist() == [*range(len(prompt), len(prompt) + 12)]
    text = index.lm.tokenizer.decode(made, skip_special_tokens=True)
    assert sample.row == {"prompt": PROMPT, "response": text}
    assert "".join(words) == text
    assert complete(index.lm, PROMPT, 12) == text
    # A sample is a query like any other: as its own tokens are, not as its text would be.
    hits = index.query(sample, 3, exact=True)
    found = index.explain(sample, hits[0].key)
    assert found.score == pytest.approx(hits[0].score, rel=1e-5)
    assert found.query.scored.sum() == 12
    last = index.part(sample, tokens=slice(-2, None))
    np.testing.assert_allclose(
        index.explain(last, hits[0].key).terms, found.terms[-2:], rtol=1e-4, atol=1e-7
    )


def test_draws_depend_on_the_seed_alone(index: InfluenceIndex) -> None:
    def draw(seed: int, **options: float) -> list[int]:
        sampling = Sampling(12, temperature=options.pop("temperature", 1.5), seed=seed, **options)
        return index.respond(PROMPT, sampling).input_ids.tolist()

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert draw(1) == first
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1
    greedy = index.respond(PROMPT, Sampling(12)).input_ids.tolist()
    assert draw(3, temperature=1.5, top_p=1e-6) == greedy
    assert draw(3, temperature=1e-4) == greedy


@pytest.mark.parametrize("eos", [None, True])
def test_the_end_counts_where_it_counts_in_the_rows(
    tmp_path: Path, rows: list[Row], eos: bool | None
) -> None:
    with build(tmp_path / "i", rows, language_model(end_after=4), eos=eos) as index:
        sample = index.respond(PROMPT)
        assert sample.n_scored == (5 if eos else 4)
        end = index.lm.tokenizer.eos_token_id
        assert (sample.input_ids[-1] == end) == bool(eos)
        assert "</s>" not in sample.row["response"]


def test_an_answer_of_nothing_is_an_error(tmp_path: Path, rows: list[Row]) -> None:
    with (
        build(tmp_path / "i", rows, language_model(end_after=0)) as index,
        pytest.raises(InputError, match="gives this prompt an empty answer"),
    ):
        index.respond(PROMPT)


def test_a_chat_is_answered_through_its_template(tmp_path: Path, rows: list[Row]) -> None:
    with build(
        tmp_path / "i", rows, language_model(end_after=3), chat=True, chat_template=CHAT
    ) as index:
        text = f"<s>user: {PROMPT}</s><s>assistant: "
        prompt = index.lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for asked in (PROMPT, {"prompt": PROMPT}):
            sample = index.respond(asked)
            assert sample.input_ids.tolist()[: len(prompt)] == prompt
            assert not sample.scored[: len(prompt)].any()
            # The template's end of turn is scored in the rows, and so it is here.
            assert sample.n_scored == 4
            assert sample.input_ids[-1] == index.lm.tokenizer.eos_token_id
        assert index.query(sample, 2)[0].rank == 1


def test_a_conversation_is_gone_on_with(tmp_path: Path) -> None:
    def turn(role: str, content: str) -> Row:
        return {"role": role, "content": content}

    rows = [
        {"id": f"row-{i}", "messages": [turn("user", f"ask {i}"), turn("assistant", f"say {i}")]}
        for i in range(6)
    ]
    lm = language_model(end_after=3)
    with build(tmp_path / "i", rows, lm, messages_field="messages", chat_template=CHAT) as index:
        talk = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
        sample = index.respond({"messages": talk})
        assert np.flatnonzero(sample.scored).tolist() == [*range(len(sample.scored))][-4:]
        *before, answer = sample.row["messages"]
        assert before == talk
        assert answer["role"] == "assistant" and answer["content"]
        asked = index.respond("a")
        assert asked.row["prompt"] == "a"
        start = index.lm.tokenizer("<s>user: a</s><s>assistant: ")["input_ids"]
        assert asked.input_ids.tolist()[:-4] == start


def test_plain_text_is_gone_on_with(tmp_path: Path) -> None:
    rows = [{"id": f"row-{i}", "story": f"once {i} upon"} for i in range(6)]
    with build(tmp_path / "i", rows, language_model(), text_field="story") as index:
        sample = index.respond("once", Sampling(5))
        assert sample.n_scored == 5
        assert index.lm.tokenizer.decode(sample.input_ids[:4]) == "once"


def test_wrong_settings_are_named(index: InfluenceIndex) -> None:
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
            Sampling(**wrong)
    with pytest.raises(InputError, match="the prompt has more than the 63 tokens"):
        index.respond("a" * 64)
    # As many as there is room for.
    assert index.respond("a" * 60, Sampling(99)).n_scored == 4
    with pytest.raises(InputError, match="the prompt has 64 tokens, and the model reads at most"):
        complete(index.lm, "a" * 64)
    with pytest.raises(InputError, match="the prompt has no tokens"):
        complete(index.lm, "")


@pytest.fixture()
def built(tmp_path: Path, rows: list[Row], model_dir: Path) -> Path:
    path = tmp_path / "my.index"
    train = write(tmp_path / "train.jsonl", rows)
    run_well(
        *("build", train, "--index", path, "--model", model_dir),
        *("--key-field", "id", "--dim", 32, "--sketch-dim", 256),
    )
    return path


def test_ask_for_programs(built: Path, tmp_path: Path) -> None:
    ask = ("ask", "--index", built, "--max-new-tokens", 8, "-k", 3, "--json")
    value = json.loads(run_well(*ask, "--prompt", PROMPT, "--exact"))
    assert sorted(value) == ["hits", "row"]
    assert [hit["rank"] for hit in value["hits"]] == [1, 2, 3]
    for hit in value["hits"]:
        texts, values = zip(*hit["tokens"], strict=True)
        assert "".join(texts) == hit["sample"]["prompt"] + hit["sample"]["response"]
        assert sum(value or 0 for value in values) == pytest.approx(hit["score"], rel=1e-4)
    # The same as a query, where the text has but one way to be tokenised.
    same = run_well(
        *("query", "--index", built, "--prompt", PROMPT, "--response", value["row"]["response"]),
        *("-k", 3, "--exact", "--json"),
    )
    assert [json.loads(line)["key"] for line in same.splitlines()] == [
        hit["key"] for hit in value["hits"]
    ]
    data = write(tmp_path / "one.jsonl", [{"prompt": PROMPT}])
    assert json.loads(run_well(*ask, "--data", data, "--exact")) == value
    span = value["row"]["response"][2:5]
    opponents = json.loads(run_well(*ask, "--prompt", PROMPT, "--span", span, "--opponents"))
    assert opponents["hits"][0]["score"] < 0


def test_ask_for_people(built: Path) -> None:
    ask = ("ask", "--index", built, "--prompt", PROMPT, "--max-new-tokens", 8, "-k", 3)
    result = run(*ask)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(run_well(*ask, "--json"))["row"]["response"]
    assert f"? {PROMPT}{answer}" in result.stdout
    assert result.stdout.count("row-") == 3
    assert "cut off at --max-new-tokens 8" in result.stderr


def test_ask_says_what_is_wrong(built: Path, tmp_path: Path) -> None:
    ask = ("ask", "--index", built, "--max-new-tokens", 4)
    lost = run(*ask, "--prompt", PROMPT, "--span", "not there", "--json")
    assert_one_line(lost, "'not there' is not in the response")
    assert_one_line(run(*ask, "--prompt", "a" * 70), "the prompt has more than the 63 tokens")
    two = write(tmp_path / "two.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert_one_line(run(*ask, "--data", two), "holds 2 rows: ask takes one at a time")
    other = write(tmp_path / "other.jsonl", [{"question": "a"}])
    assert_one_line(run(*ask, "--data", other), "no field 'prompt'")
    for wrong in ([], ["--prompt", "a", "--data", "b"], ["--prompt", "a", "--tokens", "x:1"]):
        assert run(*ask, *wrong).exit_code == 2


def test_a_classifier_writes_no_answer(index: InfluenceIndex) -> None:
    index.session._lm = replace(index.lm, task="classification")
    with pytest.raises(InputError, match="is a classifier and writes no answer"):
        index.respond(PROMPT)
