"""Models, adapters and trainers that cannot be read, and what is asked of them."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from error_cases.case import Case, python
from error_cases.damage import _model
from error_cases.rows import BUILD, PAIR

ROWS = {"rows.jsonl": json.dumps(PAIR) + "\n"}
SIZES = {"vocab_size": 1095, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "max_position_embeddings": 128}  # fmt: skip


def _loaded(name: str = "model") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(name)


def _saved(make: Callable[[], Any]) -> Callable[[Path], None]:
    """Puts another model into a folder `model` with the same tokenizer."""

    def save(folder: Path) -> None:
        _model()(folder)
        make().save_pretrained(folder / "model")

    return save


def _bert(kind: str = "BertForSequenceClassification", **settings: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **settings))


def _llama(change: Callable[[Any], None]) -> Any:
    """Returns a small random model that was changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        change(model)
    return model


def _odd(logits: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Returns a model whose logits are a function of it and its states."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    model = _loaded()

    def forward(input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
        states = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(logits=logits(model, states))

    model.forward = forward
    return {"odd": model}


def _twice(model: Any, states: Any) -> Any:
    return model.lm_head(states) + model.lm_head(states / 2)


def _adapter(make: Callable[[], Any], name: str = "adapter", **more: Any) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        from peft import get_peft_model

        get_peft_model(_loaded(str(folder / "model")), make()).save_pretrained(
            str(folder / name), **more
        )

    return save


def _lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 1, "target_modules": ["q_proj"]} | settings)


def _prompts() -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1)


def _wrong_adapter(folder: Path) -> None:
    _adapter(_lora)(folder)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace("q_proj", "c_attn"))


def _two_adapters(folder: Path) -> None:
    torch.manual_seed(0)
    make = partial(_lora, modules_to_save=["embed_tokens"])
    for name in ("a", "b"):
        _adapter(_lora, name, save_embedding_layers=True)(folder)
        file = folder / name / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({k: v + 1 for k, v in load_file(file).items()}, file)


def _pickled(folder: Path) -> None:
    _model()(folder)
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Path("x")))


def _tokenizer(change: Callable[[dict[str, Any]], None], name: str = "tokenizer_config.json") -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        if (folder / "model").is_symlink():
            _model()(folder)
        path = folder / "model" / name
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings))

    return edit


def _no_space(folder: Path) -> None:
    _saved(_bert)(folder)
    _tokenizer(lambda made: made.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}, post_processor=None), "tokenizer.json")(folder)


LABEL = "--label-field topic"
CLASS = "the model is a sequence classifier with the classes LABEL_0 and LABEL_1"


def _class(fields: str, options: str = LABEL, before: Any = _saved(_bert), told: str = CLASS) -> Case:
    return Case(f"{BUILD} {options}".strip(), {"rows.jsonl": fields}, before=before, told=told)


CLASSES = [
    _class('{"text": "a", "topic": "LABEL_0"}', ""),
    _class('{"text": "a", "topic": "LABEL_0"}', "--text-field text"),
    _class('{"text": "a", "topic": "LABEL_0"}', f"--text-field text {LABEL} --template chat.jinja"),
    _class('{"text": "a", "topic": "LABEL_0"}', f"{LABEL} --template chat.jinja"),
    _class('{"prompt": "a", "response": "b", "topic": "LABEL_0"}', f"{LABEL} --chat-template chat.jinja --chat"),
    _class('{"text": "a", "topic": "sport"}', f"--text-field text {LABEL}"),
    _class('{"text": " ", "topic": "LABEL_0"}', f"--text-field text {LABEL}", _no_space, CLASS + ", and its tokenizer leaves spaces out"),
    _class('{"text": "a", "topic": "LABEL_0"}', f"--text-field text {LABEL}", _saved(partial(_bert, num_labels=1)), "the model gives a number"),
    _class('{"text": "a", "topic": "LABEL_0"}', f"--text-field text {LABEL}", _saved(lambda: _nan_class()), "a weight is NaN"),
]


def _nan_class() -> Any:
    model = _bert()
    model.classifier.bias.data[0] = float("nan")
    return model

LOADING = [
    Case(f"{BUILD} --adapter adapter", ROWS | {"adapter/adapter_config.json": "{}"}, lacking="peft"),
    Case(f"{BUILD} --adapter adapter", ROWS, before=_adapter(_prompts), told="the adapter was made by prompt tuning"),
    Case(f"{BUILD} --adapter adapter", ROWS, before=_wrong_adapter, told="the adapter is for layers c_attn"),
    Case(f"{BUILD} --adapter a --adapter b", ROWS, before=_two_adapters, told="the adapters were saved with embeddings"),
    Case(BUILD, ROWS, before=_pickled, told="the weights are a pickle with code"),
    Case(BUILD, ROWS, before=_model(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), lacking="bitsandbytes", told="the model is quantised"),
    Case(BUILD, ROWS, before=_model(quantization_config={"quant_method": "gptq", "bits": 4}), lacking="optimum", told="the model is quantised"),
    Case("build rows.jsonl --index new --model gguf", ROWS | {"gguf/a.gguf": ""}, lacking="gguf"),
    Case(f"{BUILD} --device auto", ROWS, lacking="accelerate"),
    Case(BUILD, ROWS, before=_model(vocab_size=4000), told="vocab"),
    Case(BUILD, ROWS, before=_saved(partial(_bert, "BertLMHeadModel")), told="the model is an encoder"),
    Case(f"{BUILD} --task causal", ROWS, before=_saved(partial(_bert, "BertLMHeadModel")), told="the model is an encoder"),
    Case(BUILD, ROWS, before=_saved(lambda: _llama(lambda m: m.model.norm.weight.fill_(float("nan")))), told="a weight is NaN"),
    Case(BUILD, ROWS, before=_saved(lambda: _llama(lambda m: m.model.embed_tokens.weight[:500].fill_(float("nan")))), told="the embeddings of some tokens are NaN"),
    Case("preview rows.jsonl --model model", ROWS, before=_tokenizer(lambda s: s.clear(), "config.json"), told="empty"),
    Case(f"{BUILD} --add-eos", ROWS, before=_tokenizer(lambda s: s.pop("eos_token")), told="the tokenizer has no eos_token"),
]


def _known(**named: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    return lambda: {name: make() for name, make in named.items()}


def _base() -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained("model")


WRAPPED = [
    python("wrap_model(base, None)", known=_known(base=_base), told="`base` is from AutoModel.from_pretrained"),
    python("wrap_model('model', None)"),
    python("wrap_model(model, 3)", known=_known(model=_loaded)),
    python("wrap_model(odd, None)", known=lambda: _odd(lambda m, s: m.lm_head(s) ** 3), told="`odd` gives the cubes of its head's outputs"),
    python("wrap_model(odd, None)", known=lambda: _odd(lambda m, s: s @ m.lm_head.weight.T), told="`odd` never calls its head"),
    python("wrap_model(odd, None)", known=lambda: _odd(_twice), told="`odd` calls its head twice"),
    python("wrap_model(odd, None)", known=lambda: _odd(lambda m, s: m.lm_head(s)[:, :1]), told="`odd` gives logits for the first token only"),
    python("wrap_model(odd, None)", known=lambda: _odd(lambda m, s: 1 / 0), told="`odd` divides by zero"),
]

ASKED = [
    python("index.respond('')"),
    python("index.respond({'text': ''}, format=FormatConfig(text_field='text'))"),
    python("index.respond({'prompt': ''})"),
    python("index.close() or index.query(row)"),
    python("index.close() or len(index)"),
    python("InfluenceIndex.build('new', [row], wrap_model(model, tokenizer), devices=['cpu', 'cpu'])", known=lambda: _pair()),
    python("InfluenceIndex.build('new', [row], wrap_model(model, tokenizer))[0].close() or InfluenceIndex.open('new').query(row)", known=lambda: _pair()),
    python("InfluenceIndex.build_shard('my.index', [row], '0/2')"),
    Case("build rows.jsonl --index my.index --model model --shard 0/2", ROWS),
    Case("build rows.jsonl --index my.index --model model --shards 2 --key-field id", ROWS),
    Case("build rows.jsonl --index my.index --model model --key-field id --catalog postgresql+psycopg://user@host/name", ROWS),
    Case(f"{BUILD} --shards 2 --catalog postgresql+psycopg://user@host/name", ROWS),
    Case(f"{BUILD} --truncate end --on-error skip", {"rows.jsonl": json.dumps({"prompt": "many words " * 200, "response": " b"})}),
    python("index.query(row).to_pandas()", lacking="pandas"),
    python("index.query(row).to_dataset()", lacking="datasets"),
    python("index.score([row]).to_pandas()", lacking="pandas"),
    Case("select --index my.index --data rows.jsonl --budget 3 --dataset out.jsonl", ROWS),
    Case("score --index my.index --data rows.jsonl --dataset out.jsonl", ROWS),
    Case("evaluate fidelity --index my.index --data rows.jsonl --sample 1", ROWS),
    Case("score --index my.index --data rows.jsonl --combine each --exact", ROWS),
]


def _pair() -> dict[str, Any]:
    from transformers import AutoTokenizer
    return {"model": _loaded(), "tokenizer": AutoTokenizer.from_pretrained("model")}


CASES = [*CLASSES, *LOADING, *WRAPPED, *ASKED]
