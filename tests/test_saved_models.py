"""Models as they are saved: adapter folders with what they bring, and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers.models import save_model, tiny_model, tiny_tokenizer
from peft import LoraConfig, get_peft_model

from forvalue_index import InfluenceIndex, ModelConfig, VectorConfig, preview
from forvalue_index.cli import main
from forvalue_index.errors import DependencyError, ModelError
from forvalue_index.model.language_model import load_model
from forvalue_index.model.locate import locate

SMALL = VectorConfig(dim=48, sketch_dim=2304, bits=16)
ROWS = [{"prompt": f"<new> {word}", "response": f" {word[::-1]}"} for word in ("ab", "cde", "fg")]

pytestmark = [  # PEFT's own
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def adapter_with_tokens(path: Path, kind: str = "llama", seed: int = 1, **settings: Any) -> Any:
    """A base, and an adapter on it with two more tokens and a template of its own; the model."""
    base = save_model(path / "base", kind, 0)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>", "<more>"])
    tokenizer.chat_template = "{% for m in messages %}<new>{{ m.content }}{% endfor %}"
    model = tiny_model(kind)
    model.config._name_or_path = model.name_or_path = str(base)
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = ["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=layers, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path / "adapter")
    tokenizer.save_pretrained(path / "adapter")
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}], ids=["grown", "copy"])
def test_an_adapter_with_resized_embeddings_is_its_merged_model(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    model = adapter_with_tokens(tmp_path, kind, **settings)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "merged")
    found = []
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    for name, config in {
        "folder": ModelConfig(adapter),
        "both": ModelConfig(base, adapters=(adapter,)),
        "merged": ModelConfig(str(tmp_path / "merged")),
    }.items():
        index, _ = InfluenceIndex.build(tmp_path / "i" / name, ROWS, config, vector=SMALL)
        with index:
            assert index.lm.head.vocabulary == 98
            sample = index.samples(ROWS[0])[0]
            assert 96 in sample.input_ids  # <new>, which the base does not have
            hits = index.query(sample, 3, exact=True)
            found.append([(hit.key, pytest.approx(hit.score, rel=1e-3)) for hit in hits])
            assert [(hit.key, hit.score) for hit in hits] == found[0]


def load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path / "adapter")


def test_an_adapter_is_opened_by_the_index_that_names_it(tmp_path: Path) -> None:
    adapter_with_tokens(tmp_path)
    index, _ = InfluenceIndex.build(tmp_path / "i", ROWS, str(tmp_path / "adapter"), vector=SMALL)
    index.close()
    with InfluenceIndex.open(tmp_path / "i") as index:
        assert index.query(ROWS[0], 1)
    other = ModelConfig(str(tmp_path / "base"), adapters=(str(tmp_path / "adapter"),))
    with InfluenceIndex.open(tmp_path / "i", model=other) as index:
        assert index.query(ROWS[0], 1)
    InfluenceIndex.build(tmp_path / "j", ROWS, other, vector=SMALL)[0].close()
    shown = CliRunner().invoke(main, ["info", "--index", str(tmp_path / "j")]).output
    assert "adapters" in shown
    shown = CliRunner().invoke(main, ["info", "--index", str(tmp_path / "i")]).output
    assert "adapters" not in shown


def test_an_adapters_own_tokenizer_and_template_are_shown(tmp_path: Path) -> None:
    adapter_with_tokens(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    for options in (
        ["--model", str(tmp_path / "adapter")],
        ["--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")],
    ):
        args = ["preview", str(rows), *options, "--chat", "--score", "all"]
        shown = CliRunner().invoke(main, args)
        assert shown.exit_code == 0, shown.output
        assert "<new>a" in shown.output.replace("⟧⟦", "").replace("⟦", "")
    [one] = preview([{"prompt": "<new>", "response": "b"}], ModelConfig(str(tmp_path / "adapter")))
    assert not isinstance(one, Exception) and one.ids[0] == 96


def test_two_adapters_with_embeddings_of_their_own_are_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        adapter_with_tokens(tmp_path / str(number), seed=number)
    names = tuple(str(tmp_path / str(number) / "adapter") for number in (1, 2))
    with pytest.raises(ModelError, match="cannot be read beside each other"):
        load_model(ModelConfig(str(tmp_path / "1" / "base"), adapters=names), "cpu")
    load_model(ModelConfig(str(tmp_path / "1" / "base"), adapters=(names[0], names[0])), "cpu")


def named(path: Path, base: Any) -> str:
    """An adapter folder that says so of its base."""
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return str(path)


@pytest.mark.parametrize("base", ["someone/something", "../../nowhere", "a\0b", "x" * 3000])
def test_a_base_is_not_fetched_because_an_adapter_names_it(tmp_path: Path, base: str) -> None:
    with pytest.raises(ModelError, match=r"not on this machine: if you know it, give its base"):
        load_model(ModelConfig(named(tmp_path / "a", base)), "cpu")


@pytest.mark.parametrize("base", [None, 3, ""])
def test_a_base_that_is_not_named(tmp_path: Path, base: Any) -> None:
    with pytest.raises(ModelError, match="is an adapter: give its base as --model"):
        load_model(ModelConfig(named(tmp_path / "a", base)), "cpu")
    (tmp_path / "a" / "adapter_config.json").write_text("[" * 10_000)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(ModelConfig(str(tmp_path / "a")), "cpu")


def test_code_of_a_base_that_an_adapter_names_is_not_run(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama", 0)
    adapter = named(tmp_path / "a", str(base))
    place = locate(ModelConfig(adapter, trust_remote_code=True))
    assert place.config.name == str(base)
    assert place.settings["trust_remote_code"] is False
    direct = locate(ModelConfig(str(base), adapters=(adapter,), trust_remote_code=True))
    assert direct.settings["trust_remote_code"] is True


def test_which_gguf_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.model.locate.find_spec", lambda name: True)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\): choose one"):
        locate(ModelConfig(str(tmp_path)))
    assert locate(ModelConfig(str(tmp_path / "b.gguf"))).settings["gguf_file"] == "b.gguf"
    assert locate(ModelConfig(str(tmp_path), gguf_file="a.gguf")).settings["gguf_file"] == "a.gguf"
    (tmp_path / "b.gguf").unlink()
    place = locate(ModelConfig(str(tmp_path)))
    assert (place.settings["gguf_file"], place.config.name) == ("a.gguf", str(tmp_path))
    with pytest.raises(ModelError, match="cannot load model"):
        load_model(ModelConfig(str(tmp_path / "a.gguf")), "cpu")


def test_what_reads_gguf_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.model.locate.find_spec", lambda name: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        DependencyError, match=r"needs accelerate and gguf: pip install .forvalue-index\[gguf\]"
    ):
        load_model(ModelConfig(str(tmp_path)), "cpu")


def write_gguf(path: Path) -> None:
    """A tiny Llama and its tokenizer, as llama.cpp's converter writes them."""
    gguf = pytest.importorskip("gguf", reason="GGUF is not installed: pip install gguf")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    config, weights = model.config, model.state_dict()
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    merged = {"{": "yz", "`": "zy"}
    file.add_token_list([merged.get(token, token) for token in tokens])
    file.add_token_types([3] * 4 + [1] * (config.vocab_size - 4))  # control, normal
    # Two, as the reader wants some and takes a list of one for its only element.
    file.add_token_merges(["y z", "z y"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for number in range(config.num_hidden_layers):
        layer, block = f"model.layers.{number}", f"blk.{number}"
        names |= {f"{layer}.self_attn.{x}_proj": f"{block}.attn_{x}" for x in "qkv"}
        names |= {f"{layer}.mlp.{x}_proj": f"{block}.ffn_{x}" for x in ("gate", "up", "down")}
        names |= {
            f"{layer}.self_attn.o_proj": f"{block}.attn_output",
            f"{layer}.input_layernorm": f"{block}.attn_norm",
            f"{layer}.post_attention_layernorm": f"{block}.ffn_norm",
        }
    for name, theirs in names.items():
        value = weights[f"{name}.weight"].float()
        if theirs.endswith(("attn_q", "attn_k")):  # rotated as llama.cpp has it
            n = heads[theirs[-1]]
            value = value.reshape(n, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        file.add_tensor(f"{theirs}.weight", value.contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.mark.filterwarnings("ignore")  # those of the reader, which change with its versions
def test_a_gguf_file_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "llama", 0)
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf")
    rows, found = [{"prompt": "a b", "response": "c"}, {"prompt": "d", "response": " e f"}], []
    for number, name in enumerate((base, tmp_path / "gguf", tmp_path / "gguf" / "tiny.gguf")):
        index, _ = InfluenceIndex.build(tmp_path / "i" / str(number), rows, str(name), vector=SMALL)
        with index:
            sample = index.samples(rows[0])[0]
            hits = index.query(sample, 2, exact=True)
            found.append((sample.input_ids.tolist(), [hit.key for hit in hits]))
            scores = [hit.score for hit in hits]
            if number == 0:
                expected = scores
            assert scores == [pytest.approx(score, rel=1e-4) for score in expected]
    assert found[0] == found[1] == found[2]
    with InfluenceIndex.open(tmp_path / "i" / "2") as index:  # found again by the file's path
        assert index.query(rows[0], 1)
