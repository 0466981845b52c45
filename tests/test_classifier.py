"""Sequence classifiers against autograd on their last layer, and an index of one by command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.models import SIZES, VOCABULARY, save_model, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    CanineConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MobileBertConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from forvalue_index.cli import main
from forvalue_index.config import FormatConfig, VectorConfig
from forvalue_index.data.labels import ClassFormatter
from forvalue_index.errors import InputError, ModelError, RowError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Sample
from forvalue_index.vectors.recipe import Raw

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import check_heads

CLASSES = ["bad", "fair", "good"]
BERT: dict[str, Any] = {name: value for name, value in SIZES.items() if "key_value" not in name}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
}
KINDS: dict[str, Any] = {
    "bert": BertConfig(**BERT),
    "mobilebert": MobileBertConfig(  # whose configuration has no end token
        **BERT | {"hidden_size": 32},
        embedding_size=16,
        intra_bottleneck_size=16,
        true_hidden_size=16,
    ),
    "canine": CanineConfig(**BERT),  # whose configuration has no vocabulary
    "roberta": RobertaConfig(**BERT, pad_token_id=1),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY, dim=24, hidden_dim=48, n_layers=2, n_heads=2
    ),
    "electra": ElectraConfig(**BERT, embedding_size=24),
    "deberta": DebertaV2Config(**BERT),
    "modernbert": ModernBertConfig(**BERT, pad_token_id=0, classifier_bias=True),
    "gpt2": GPT2Config(**GPT2, pad_token_id=0),
    "gpt2-without-pad": GPT2Config(**GPT2),
    "llama": LlamaConfig(**SIZES, pad_token_id=0),
    "bart": BartConfig(
        vocab_size=VOCABULARY,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
    ),
    "t5": T5Config(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=12,
        d_ff=48,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    ),
}


def classifier(kind: str) -> Any:
    config = KINDS[kind]
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: number for number, name in enumerate(CLASSES)}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).float()
    check_heads.liven(model)
    return model.eval()


def texts(kind: str, seed: int = 0) -> list[Sample]:
    draws = np.random.default_rng(seed)
    samples = []
    for number, length in enumerate([4, 19, 7, 7, 30]):
        ids = draws.integers(5, VOCABULARY, length).astype(np.int32)
        if kind in ("bart", "t5"):  # where they pool
            ids[-1] = KINDS[kind].eos_token_id
        samples.append(
            Sample(
                key=str(number),
                content_hash=str(number),
                row={},
                input_ids=ids,
                scored=np.zeros(length, np.bool_),
                truncated=False,
                source=f"row {number}",
                label=number % 3,
            )
        )
    return samples


def gradients(lm: LanguageModel, samples: list[Sample]) -> torch.Tensor:
    """Gradients of each log-likelihood by the last layer's weight, one text at a time, unpadded."""
    rows = []
    for sample in samples:
        with check_heads.head_weight(lm.head.module, lm.head.vocabulary, lm.head.hidden) as weight:
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
            logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            likelihood = torch.log_softmax(logits.double()[0], -1)[sample.label]
            rows.append(torch.autograd.grad(likelihood, weight)[0].flatten().double())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_is_the_product_of_gradients(kind: str) -> None:
    lm = wrap_model(classifier(kind), tiny_tokenizer())
    assert lm.task == "classification"
    samples = texts(kind)
    found = Encoder(lm).influence(samples, samples, [Raw()])
    truth = gradients(lm, samples)
    truth = truth @ truth.T
    assert check_heads.largest_error(found, truth.numpy()) < 1e-4
    lengths = truth.diagonal().sqrt()
    assert (truth.abs() / lengths[:, None] / lengths[None]).min() < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_not_depend_on_what_it_is_batched_with(kind: str) -> None:
    lm = wrap_model(classifier(kind), tiny_tokenizer())
    assert lm.length_matters == (kind == "canine")  # which reads a text four characters at a time
    samples = texts(kind)
    vectoriser = fit_vectoriser(
        lm, samples, VectorConfig(dim=32, sketch_dim=72), lambda done: None
    ).vectoriser
    vectors = []
    for budget in (1, 4096):
        result = np.zeros((len(samples), vectoriser.dim))
        for batch in Encoder(lm, budget).encode(samples, vectoriser):
            for position, item in batch:
                result[position] = item.vector
                assert item.loss > 0
        vectors.append(result / np.linalg.norm(result, axis=1, keepdims=True))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)


def test_a_text_that_ends_in_padding_is_pooled_where_the_model_does_it() -> None:
    lm = wrap_model(classifier("gpt2"), tiny_tokenizer())
    samples = texts("gpt2")
    samples[1].input_ids[-3:] = 0
    found = Encoder(lm).influence(samples, samples, [Raw()])
    truth = gradients(lm, samples)
    assert check_heads.largest_error(found, (truth @ truth.T).numpy()) < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_labels": 1}, "made for regression"),
        ({"problem_type": "multi_label_classification"}, "made for multi label classification"),
    ],
)
def test_other_problems_are_refused(settings: dict[str, Any], message: str) -> None:
    config = BertConfig(**BERT, **settings)
    with pytest.raises(ModelError, match=message):
        wrap_model(AutoModelForSequenceClassification.from_config(config), tiny_tokenizer())


def formatter(**settings: Any) -> ClassFormatter:
    format = FormatConfig(**{"text_field": "text", "label_field": "label"} | settings)
    return ClassFormatter(tiny_tokenizer(), format, 8, {"bad": 0, "fair": 1, "good": 2})


@pytest.mark.parametrize(("value", "label"), [("good", 2), (2, 2), ("2", 2), ("bad", 0), (0, 0)])
def test_a_class_is_a_name_or_a_number(value: Any, label: int) -> None:
    [sample] = formatter().samples([("f:1", {"text": "ab", "label": value})])
    assert sample.label == label
    assert sample.n_scored == 1
    assert not sample.scored.any()


@pytest.mark.parametrize("value", ["best", 3, -1, "3", 1.0, True, None, ""])
def test_what_is_no_class_is_a_bad_row(value: Any) -> None:
    with pytest.raises(RowError, match="f:1: "):
        formatter().samples([("f:1", {"text": "ab", "label": value})])


def test_an_unknown_class_says_which_there_are() -> None:
    with pytest.raises(
        RowError, match="'best' is not one of the model's 3 classes: bad, fair, good"
    ):
        formatter().samples([("f:1", {"text": "ab", "label": "best"})])


@pytest.mark.parametrize(("value", "label"), [("1", 0), (1, 0), (3, 2)])
def test_a_class_that_is_called_by_a_number_is_meant_by_it(value: Any, label: int) -> None:
    format = FormatConfig(text_field="text", label_field="label")
    stars = ClassFormatter(tiny_tokenizer(), format, 8, {"1": 0, "2": 1, "3": 2})
    [sample] = stars.samples([("f:1", {"text": "ab", "label": value})])
    assert sample.label == label
    for place in (0, "0"):  # of the class "1", where others may be meant by their names
        with pytest.raises(RowError, match=r"0 is not one .*: 1, 2, 3 \(names"):
            stars.samples([("f:1", {"text": "ab", "label": place})])


def test_a_class_may_be_called_by_its_own_number() -> None:
    format = FormatConfig(text_field="text", label_field="label")
    classes = ClassFormatter(tiny_tokenizer(), format, 8, {"0": 0, "1": 1, "other": 2})
    rows = [("f:1", {"text": "ab", "label": label}) for label in ("1", 1, "2", 2)]
    assert [sample.label for sample in classes.samples(rows)] == [1, 1, 2, 2]


def test_a_bad_row_can_be_left_out() -> None:
    rows = [("f:1", {"text": "ab", "label": "best"}), ("f:2", {"text": "ab", "label": "bad"})]
    left: list[RowError] = []
    made = formatter().samples(rows, lambda error, _: left.append(error))
    assert [sample.source for sample in made] == ["f:2"]
    assert [error.source for error in left] == ["f:1"]


def test_a_long_text_is_cut_at_its_end() -> None:
    [sample] = formatter().samples([("f:1", {"text": "abcdefghijkl", "label": 0})])
    assert sample.truncated
    assert tiny_tokenizer().decode(sample.input_ids) == "abcdefgh"


def test_a_pair_of_texts_is_two() -> None:
    pairs = formatter(text_field=None)
    row = {"prompt": "ab", "response": "cd", "label": 1}
    [sample] = pairs.samples([("f:1", row)])
    assert sample.input_ids.tolist() == tiny_tokenizer()("ab", "cd")["input_ids"]


def test_a_classifier_wants_labels() -> None:
    with pytest.raises(InputError, match="with --label-field"):
        formatter(label_field=None)
    with pytest.raises(InputError, match="a classifier reads plain texts"):
        formatter(text_field=None, chat=True)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "bert"
    classifier("bert").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_an_index_of_a_classifier_by_command(tmp_path: Path, model_dir: Path) -> None:
    draws = np.random.default_rng(0)
    rows = [
        {
            "id": f"row-{i}",
            "text": "".join(draws.choice(list("abcdef "), int(draws.integers(4, 30)))),
            "label": CLASSES[i % 3],
        }
        for i in range(30)
    ]
    data, more, index = tmp_path / "rows.jsonl", tmp_path / "more.jsonl", tmp_path / "index"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:25]))
    more.write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    fields = "--text-field", "text", "--label-field", "label", "--key-field", "id"
    small = "--dim", "24", "--sketch-dim", "48"
    built = command("build", data, "--index", index, "--model", model_dir, *fields, *small)
    assert built.exit_code == 0, built.output
    added = command("add", more, "--index", index)
    assert "5 samples added" in added.stderr
    asked = command(
        "query", "--index", index, "--text", rows[3]["text"], "--label", "bad", "-k", "2",
        "--exact", "--json",
    )  # fmt: skip
    hits = [json.loads(line) for line in asked.stdout.splitlines()]
    assert hits[0]["key"] == "row-3"
    assert hits[0]["score"] > 0
    shown = command("query", "--index", index, "--text", "abc", "--label", "2", "-k", "1")
    assert " → " in shown.stdout
    against = command(
        "query", "--index", index, "--text", rows[3]["text"], "--label", "good", "--opponents",
        "-k", "30", "--json",
    )  # fmt: skip
    assert "row-3" in [json.loads(line)["key"] for line in against.stdout.splitlines()][:10]
    assert "text, label" in command("info", "--index", index).stdout
    assert "bad" in command("show", "row-3", "--index", index).stdout
    assert command("verify", "--index", index).exit_code == 0


def test_what_a_classifier_is_not_asked(tmp_path: Path, model_dir: Path) -> None:
    index = tmp_path / "index"
    row = {"text": "abcd", "label": "fair"}
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row))
    named = "--index", index, "--model", model_dir, "--text-field", "text"
    refused = command("build", data, *named)
    assert refused.exit_code == 1
    assert "with --label-field" in refused.stderr
    assert not index.exists()
    assert command("build", data, *named, "--label-field", "label").exit_code == 0
    unlabelled = command("query", "--index", index, "--text", "ab")
    assert unlabelled.exit_code == 2
    assert "give --label too" in unlabelled.stderr
    unknown = command("query", "--index", index, "--text", "ab", "--label", "awful")
    assert unknown.exit_code == 1
    assert "'awful' is not one of the model's 3 classes" in unknown.stderr


def test_a_language_model_has_no_labels(tmp_path: Path) -> None:
    path = save_model(tmp_path / "llama", "llama", 0)
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"text": "abcd", "label": "fair"}))
    named = "--index", tmp_path / "index", "--model", path
    refused = command("build", data, *named, "--text-field", "text", "--label-field", "label")
    assert refused.exit_code == 1
    assert "--task classification" in refused.stderr
