"""Where texts begin, meet and end: the tokens are those of the one text that trainers make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import tokenizer as of_bytes
from helpers.cli import run, run_well, write
from helpers.indexes import SMALL
from helpers.models import SIZES, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from forvalue_index import FormatConfig, InfluenceIndex, wrap_model
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.tokens import special_tokens
from forvalue_index.errors import IndexMissingError
from forvalue_index.model.generation import Sampling
from forvalue_index.records import Row, Sample


def sentencepiece(start: str = "<s>") -> PreTrainedTokenizerFast:
    """Like SentencePiece's: a text begins with a space that it does not have, and with <s>."""
    words = ["▁the", "▁sky", "▁is", "▁blue", "▁", *"abcdefghijklmnopqrstuvwxyz.{}"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(word, -2.0 if len(word) > 1 else -9.0) for word in words]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    marks = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence(list(marks))
    made.decoder = decoders.Metaspace()
    single = f"{start} $A".strip()
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def sample_of(tokenizer: Any, row: Row, max_length: int = 64, **settings: Any) -> Sample:
    formatter = Formatter(tokenizer, FormatConfig(**settings), max_length)
    return formatter.samples([("f:1", row)])[0]


def scored(tokenizer: Any, sample: Sample) -> list[str]:
    found: list[str] = tokenizer.convert_ids_to_tokens(sample.input_ids[sample.scored].tolist())
    return found


SKY = {"prompt": "the sky is", "response": " blue"}


def test_prompt_and_response_are_one_text_to_the_tokenizer() -> None:
    tokens = sentencepiece()
    made = sample_of(tokens, SKY)
    assert made.input_ids.tolist() == [*tokens("the sky is blue")["input_ids"], 2]
    assert scored(tokens, made) == ["▁blue", "</s>"]
    old = sample_of(tokens, SKY, form=1)  # as an index of the first form goes on to read it
    parts = [tokens(text, add_special_tokens=False)["input_ids"] for text in SKY.values()]
    assert old.input_ids.tolist() == parts[0] + parts[1]
    assert scored(tokens, old) == ["▁", "▁blue"]


def test_a_token_over_the_joint_is_scored() -> None:
    tokens = of_bytes(None, merges=[("e", "f")])
    made = sample_of(tokens, {"prompt": "abcde", "response": "fg"})
    assert made.input_ids.tolist() == [*tokens("abcdefg")["input_ids"], tokens.eos_token_id]
    assert scored(tokens, made) == ["ef", "g", "</s>"]


@pytest.mark.parametrize("row", [SKY, {"text": "the sky"}])
def test_what_the_tokenizer_begins_with_is_added_once(row: Row) -> None:
    field = {"text_field": "text"} if "text" in row else {}
    tokens, first = sentencepiece(), next(iter(row))
    start = tokens.bos_token_id
    assert sample_of(tokens, row, **field).input_ids[0] == start
    assert start not in sample_of(tokens, row, bos=False, **field).input_ids
    assert start not in sample_of(sentencepiece(start=""), row, **field).input_ids
    written = row | {first: "<s>" + row[first]}
    assert sample_of(tokens, written, **field).input_ids.tolist().count(start) == 1
    with_template = {"template": "<s>{{ prompt }}"} if first == "prompt" else {}
    made = sample_of(tokens, row, **field, **with_template)
    assert made.input_ids.tolist().count(start) == 1


def test_a_first_word_is_predicted_from_the_start_token() -> None:
    tokens = sentencepiece()
    assert scored(tokens, sample_of(tokens, {"text": "the sky"}, text_field="text")) == [
        "▁the",
        "▁sky",
    ]
    alone = {"prompt": "", "response": "the sky"}
    assert scored(tokens, sample_of(tokens, alone)) == ["▁the", "▁sky", "</s>"]
    assert scored(tokens, sample_of(tokens, alone, bos=False)) == ["▁sky", "</s>"]


def test_the_start_stays_when_a_long_prompt_is_cut() -> None:
    tokens = sentencepiece()
    long = {"prompt": "the sky is " * 20 + "the", "response": " sky"}
    made = sample_of(tokens, long, 6)
    assert made.input_ids[0] == tokens.bos_token_id and len(made.input_ids) == 6
    assert scored(tokens, made) == ["▁sky", "</s>"]


def test_a_chat_template_writes_its_own_start() -> None:
    tokens = sentencepiece()
    tokens.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    made = sample_of(tokens, SKY, chat=True)
    assert made.input_ids.tolist().count(tokens.bos_token_id) == 1
    assert made.input_ids.tolist().count(tokens.eos_token_id) == 1


# -- what is said of it ------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokens = sentencepiece()
    folder = tmp_path / "model"
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)).save_pretrained(folder)
    tokens.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens.save_pretrained(folder)
    return folder


def test_preview_says_what_is_added_and_which_fields_are_read(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [SKY | {"source": "b", "none": None}])
    result = run("preview", data, "--model", model)
    assert "the sky is⟦ blue</s>⟧" in result.stdout
    assert "<s> is added at the start of each row: --no-bos" in result.stderr
    assert "</s> is added at the end of each row and scored: --no-eos" in result.stderr
    assert "has a chat template, but prompts and responses are read without it" in result.stderr
    read = "Fields: prompt as prompt; response as response; not read by the model: source\n"
    assert read in result.stderr
    result = run("preview", data, "--model", model, "--no-bos", "--no-eos", "--chat")
    assert "added" not in result.stderr and "without it" not in result.stderr


def test_build_says_which_fields_are_not_used(model: Path, tmp_path: Path) -> None:
    rows = [SKY | {"n": i} for i in range(4)] + [SKY | {"more": {"a": 1}}]
    data = write(tmp_path / "rows.jsonl", rows)
    settings = ("--model", model, "--dim", 8, "--sketch-dim", 64)
    result = run("build", data, "--index", tmp_path / "i", *settings)
    assert result.exit_code == 0, result.stderr
    assert "Kept with each row, not read by the model: n, more\n" in result.stderr
    assert "if it was trained through the template, give --chat" in result.stderr


def test_a_field_with_a_meaning_is_read_or_left_out_on_purpose(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [SKY | {"system": "the sky"}])
    settings = ("--model", model, "--dim", 8, "--sketch-dim", 64, "--index", tmp_path / "i")
    result = run("build", data, *settings)
    assert result.exit_code == 1
    assert "rows.jsonl:1: field 'system' has a meaning for trainers" in result.stderr
    assert "give --chat" in result.stderr and "--ignore-field system" in result.stderr
    assert not (tmp_path / "i").exists()
    run_well("build", data, *settings, "--ignore-field", "system")
    with InfluenceIndex.open(tmp_path / "i") as index:
        assert index.config.format.ignored_fields == ("system",)
        assert index.add(SKY | {"system": "blue"}).unused == ("system",)
    shown = json.loads(run_well("preview", data, "--model", model, "--chat", "--json"))
    assert "".join(shown["tokens"]).startswith("the sky")


# -- an index and its answers ------------------------------------------------------------------


def test_an_answer_of_the_model_begins_where_the_prompt_ends(tmp_path: Path) -> None:
    """No token of the prompt is lost to one that it would share with a response."""
    tokens = of_bytes(None, merges=[("s", mark) for mark in "xa"])
    sizes = SIZES | {"vocab_size": len(tokens)}
    lm = wrap_model(AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), tokens)
    rows = [{"prompt": "the", "response": "ab"}, {"prompt": "sky", "response": "cd"}]
    with InfluenceIndex.build(tmp_path / "i", rows, lm, vector=SMALL)[0] as index:
        sample = index.respond("which is", Sampling(3))
    prompt = tokens("which is")["input_ids"]
    assert sample.input_ids[: len(prompt)].tolist() == prompt
    assert sample.scored.tolist() == [False] * len(prompt) + [True] * sample.n_scored
    assert set(special_tokens(tokens).values()).isdisjoint(prompt)


def test_an_index_of_the_first_form_is_gone_on_with(tmp_path: Path) -> None:
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    rows = [{"prompt": f"a{i}", "response": f"b{i}", "more": {"x": None}} for i in range(8)]
    old = FormatConfig(form=1)
    InfluenceIndex.build(tmp_path / "i", rows, lm, format=old, vector=SMALL)[0].close()
    index, report = InfluenceIndex.build(tmp_path / "i", rows, lm, vector=SMALL)
    with index:
        assert (report.skipped, report.added, len(index)) == (8, 0, 8)
        assert index.config.format == FormatConfig(form=1, max_length=64)
        assert index.samples(rows[0])[0].n_scored == 2  # without an end
    with pytest.raises(IndexMissingError, match="other settings"):
        InfluenceIndex.build(tmp_path / "i", rows, lm, format=FormatConfig(bos=False), vector=SMALL)
