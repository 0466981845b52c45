"""Adapters of a model (PEFT), all loaded at once, so that the model is read with each in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import Tensor

from forvalue_index.errors import DependencyError, ForvalueError, ModelError
from forvalue_index.model.tokenizer import PICKLED, first_line
from forvalue_index.system.files import require_no_special

COPY = ".modules_to_save."
LEAVES = ("weight", "base_layer.weight")
"""Names of an embedding's weights in an adapter that brings them."""

AdapterSet: TypeAlias = "list[tuple[str | None, float]]"
"""The adapters that a model is read with: their names in it, and their weights."""


def no_adapters() -> AdapterSet:
    """Returns what stands for a model as it is."""
    return [(None, 1.0)]


def switch(model: Any, name: str) -> None:
    """Has a model read with one of its adapters; nothing is touched if it is already."""
    if list(model.active_adapters) != [name]:
        model.set_adapter(name)


def load_adapters(
    model: Any, paths: Sequence[str], weights: Sequence[float]
) -> tuple[Any, AdapterSet]:
    """Returns a model with adapters, none of them merged, and their names and weights.

    Raises:
        ModelError: an adapter cannot be read, was made for another model, or adds tokens.
        DependencyError: PEFT is not installed.
    """
    try:
        from peft import PeftConfig, get_peft_model
        from peft.utils import load_peft_weights
    except ImportError:
        raise DependencyError('adapters need PEFT: pip install "forvalue-index[peft]"') from None
    names: AdapterSet = []
    embeddings: dict[str, Tensor] = {}  # of the first adapter, if it brings them
    for number, path in enumerate(paths):
        name = f"adapter{number}"
        try:
            require_no_special(Path(path))
            settings = PeftConfig.from_pretrained(path)
            if settings.is_prompt_learning:
                raise ModelError(
                    f"adapter {path} puts learned tokens before the text, which shifts where "
                    "predictions are read from: this is not supported; give one that changes "
                    "layers, such as LoRA"
                )
            brought = load_peft_weights(path, device="cpu")
            own_layers = _embeddings(model, brought)
            copies = tuple(f"{name}.weight" for name in settings.modules_to_save or [])
            own = {name: v for name, v in own_layers.items() if not name.endswith(copies)}
            if number == 0:
                embeddings = own
                _resize(model, own_layers)
            elif own.keys() != embeddings.keys() or any(
                not torch.equal(value, embeddings[name]) for name, value in own.items()
            ):
                raise ModelError(
                    f"adapters {paths[0]} and {path} have embeddings of their own, and cannot be "
                    "read beside each other: build an index of each"
                )
            if number == 0:
                model = get_peft_model(model, settings, adapter_name=name)
            # Copied from the CPU to where the model is: PEFT would take the first GPU for it.
            found = model.load_adapter(path, adapter_name=name, torch_device="cpu")
            lost = [key for key in found.missing_keys if name in key]
            # With resized embeddings PEFT saves a trained copy twice.
            lost += [
                key
                for key in found.unexpected_keys
                if COPY not in key or key.replace(COPY, ".") not in brought
            ]
            if lost:
                raise ValueError(
                    f"it was made for another base model ({lost[0]} has no counterpart)"
                )
        except (ForvalueError, MemoryError):
            raise
        except Exception as error:  # of a damaged file, the libraries raise nearly anything
            reason = PICKLED if isinstance(error, UnpicklingError) else first_line(error)
            if Path(path).exists() and not (Path(path) / "adapter_config.json").exists():
                reason = "it has no adapter_config.json"
            raise ModelError(
                f"cannot put adapter {path} on {model.name_or_path}: {reason}"
            ) from error
        names.append((name, weights[number] if weights else 1.0))
    return model, names


def _embeddings(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a model's embeddings that an adapter brings, by their names in it."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    ends = [whole.get_input_embeddings(), whole.get_output_embeddings()]
    names = [name for name, module in whole.named_modules() if any(module is end for end in ends)]
    known = {f"base_model.model.{name}.{leaf}" for name in names for leaf in LEAVES}
    return {name: value for name, value in weights.items() if name in known}


def _resize(model: Any, embeddings: dict[str, Tensor]) -> None:
    """Gives a model as many tokens as an adapter brings embeddings of."""
    sizes = [len(value) for value in embeddings.values()]
    if sizes and max(sizes) != len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(max(sizes), mean_resizing=False)
