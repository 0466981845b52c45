"""Models and adapters that cannot be read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from error_cases.case import Case, python
from error_cases.damage import model_with
from error_cases.rows import BUILD, GOOD
from safetensors.torch import load_file, save_file

ROWS: dict[str, str | bytes] = {"rows.jsonl": GOOD}
SIZES: dict[str, Any] = {
         "vocab_size": 1095, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "max_position_embeddings": 128}  # fmt: skip
NAN = float("nan")


def loaded() -> Any:
    """Returns the model of the folder `model`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained("model")


def pair() -> dict[str, Any]:
    """Returns the model of the folder `model` and its tokenizer."""
    from transformers import AutoTokenizer

    return {"model": loaded(), "tokenizer": AutoTokenizer.from_pretrained("model")}


def saved(make: Callable[[], Any]) -> Callable[[Path], None]:
    """Returns what puts another model into the folder `model`, beside the same tokenizer."""

    def save(folder: Path) -> None:
        model_with()(folder)
        make().save_pretrained(folder / "model")

    return save


def edited(name: str, **settings: Any) -> Callable[[Path], None]:
    """Returns what changes settings in a JSON file of the folder `model`; None: takes them out."""

    def edit(folder: Path) -> None:
        if (folder / "model").is_symlink():
            model_with()(folder)
        path = folder / "model" / name
        known = json.loads(path.read_text()) | settings
        path.write_text(json.dumps({k: value for k, value in known.items() if value is not None}))

    return edit


def bert(kind: str = "BertForSequenceClassification", **settings: Any) -> Any:
    """Returns a small random BERT."""
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **settings))


def llama(weight: str = "", rows: slice = slice(None)) -> Any:
    """Returns a small random Llama; rows of the weight that is named are NaN."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    if weight:
        model.get_parameter(weight).data[rows] = NAN
    return model


def odd(logits: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Returns a model whose logits are a function of it and its states, and its tokenizer."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    made = pair()
    model = made["model"]

    def forward(input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        states = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(logits=logits(model, states))

    model.forward = forward
    return made


def lora() -> Any:
    """Returns the settings of a small adapter."""
    from peft import LoraConfig

    return LoraConfig(r=1, target_modules=["q_proj"])


def prompts() -> Any:
    """Returns the settings of learned prompts."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1)


def adapter(make: Callable[[], Any], name: str = "lora", **more: Any) -> Callable[[Path], None]:
    """Returns what saves a new adapter of the model in a folder."""

    def save(folder: Path) -> None:
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        if (folder / "model").is_symlink():
            model_with()(folder)
        base = AutoModelForCausalLM.from_pretrained(folder / "model")
        get_peft_model(base, make()).save_pretrained(str(folder / name), **more)

    return save


def _wrong_adapter(folder: Path) -> None:
    adapter(lora)(folder)
    path = folder / "lora" / "adapter_config.json"
    path.write_text(path.read_text().replace("q_proj", "c_attn"))


def _two_adapters(folder: Path) -> None:
    for name in ("a", "b"):
        adapter(lora, name, save_embedding_layers=True)(folder)
    file = folder / "b" / "adapter_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)


def _pickled(folder: Path) -> None:
    model_with()(folder)
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x")))


def _spaceless(folder: Path) -> None:
    saved(bert)(folder)
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    edited("tokenizer.json", normalizer=strip, post_processor=None)(folder)


def _nan_class() -> Any:
    model = bert()
    model.classifier.bias.data[0] = NAN
    return model


def _odd_class() -> dict[str, Any]:
    model = bert()
    plain = model.forward
    model.forward = lambda **inputs: SimpleNamespace(logits=plain(**inputs).logits ** 3)
    return {"model": model}


def _base() -> dict[str, Any]:
    from transformers import AutoModel

    return {"model": AutoModel.from_pretrained("model")}


def _cut() -> dict[str, Any]:
    made = pair()
    made["model"].set_input_embeddings(torch.nn.Embedding(600, 128))
    return made


TEXT = "--text-field text --label-field topic"
CLASSES = "the model tells LABEL_0 from LABEL_1"


def _class(options: str = TEXT, text: str = "a", topic: str = "LABEL_0",
           make: Any = bert, told: str = CLASSES, **more: Any) -> Case:  # fmt: skip
    row = {"text": text, "response": "b", "topic": topic}
    more = {"before": saved(make)} | more
    return Case(f"{BUILD} {options}", {"rows.jsonl": json.dumps(row)}, told=told, **more)


def _model(told: str, before: Any, options: str = "", **more: Any) -> Case:
    return Case(f"{BUILD} {options}".strip(), ROWS, before=before, told=told, **more)


def _odd(told: str, logits: Callable[[Any, Any], Any]) -> Case:
    told = f"model, of type Llama, was changed: {told}"
    return python("wrap_model(model, tokenizer)", known=lambda: odd(logits), told=told)


INDEX = "InfluenceIndex.build('new', [row], wrap_model(model, tokenizer))"

CASES = [
    _class("--text-field text"),
    _class("--label-field topic --chat --chat-template chat.jinja --prompt-field text"),
    _class(topic="sport"),
    _class(text=" ", before=_spaceless, told=f"{CLASSES}; its tokenizer leaves spaces out"),
    _class(make=partial(bert, num_labels=1), told="the model gives a number"),
    _class(make=_nan_class, told="a weight of the classifier is NaN"),
    Case(f"{BUILD} --adapter lora", ROWS | {"lora/adapter_config.json": "{}"}, lacking="peft"),
    _model("the adapter is for layers named c_attn", _wrong_adapter, "--adapter lora",
           hide=r"(?<=model: ).*"),
    _model("the adapter is of learned prompts", adapter(prompts), "--adapter lora"),
    _model("the adapters were saved with embeddings, which differ", _two_adapters,
           "--adapter a --adapter b"),
    _model("the weights are a pickle with code", _pickled),
    _model("the model is quantised", model_with(quantization_config={
        "quant_method": "bitsandbytes", "load_in_4bit": True}), lacking="bitsandbytes"),
    Case("build rows.jsonl --index new --model gguf", ROWS | {"gguf/a.gguf": ""}, lacking="gguf"),
    Case(f"{BUILD} --device auto", ROWS, lacking="accelerate"),
    _model("the model is a BERT that fills in words", saved(partial(bert, "BertLMHeadModel")),
           "--task causal"),
    _model("a weight is NaN", saved(partial(llama, "model.norm.weight"))),
    _model("the embeddings of some tokens are NaN",
           saved(partial(llama, "model.embed_tokens.weight", slice(500)))),
    _model("the tokenizer has no eos_token", edited("tokenizer_config.json", eos_token=None),
           "--add-eos"),
    Case("preview rows.jsonl --model model", ROWS, before=edited("config.json", model_type=None),
         told="config.json names no model_type", hide=r"(?<=model: ).*?(?=; give)"),
    python("wrap_model('model', None)"),
    python("wrap_model(model, None)", known=_base, told="model is from AutoModel.from_pretrained"),
    python("wrap_model(model, None)", known=_odd_class,
           told="model is a classifier that gives the cubes of its last layer's outputs"),
    python(INDEX, known=lambda: pair() | {"tokenizer": 3}, told="tokenizer is 3"),
    python(INDEX.replace("[row]", "[{'ids': [700, 800]}]")[:-1]
           + ", format=FormatConfig(tokens_field='ids'))", known=_cut,
           told="model has embeddings of the first 600 tokens only",
           hide=r"(?<=them \().*?(?=\): try)"),
    _odd("it gives the cubes of its head's outputs", lambda m, s: m.lm_head(s) ** 3),
    _odd("it never calls its head", lambda m, s: s @ m.lm_head.weight.T),
    _odd("it calls its head twice", lambda m, s: m.lm_head(s) + m.lm_head(s / 2)),
    _odd("it gives logits of the first token only", lambda m, s: m.lm_head(s)[:, :1]),
    _odd("it asks for pixel_values", lambda m, s: m.config.to_dict()["pixel_values"]),
    python(INDEX, known=lambda: odd(lambda m, s: m.lm_head(s) if s.shape[1] < 7
                                    else s @ m.lm_head.weight.T),
           told="model calls its head for short texts only"),
]  # fmt: skip
