"""Models from a path or the hub: which kind they are of, and one-line errors where loading fails.

Loading is transformers' own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from forvalue_index.config import ModelConfig
from forvalue_index.errors import DependencyError, ForvalueError, ModelError
from forvalue_index.model.locate import locate
from forvalue_index.model.offload import require_accelerate
from forvalue_index.model.tokenizer import PICKLED, cannot_load, first_line, load_tokenizer, task_of
from forvalue_index.system.files import require_no_special

LOADERS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "image-text": AutoModelForImageTextToText,
}
PACKAGES = {
    "bitsandbytes": "accelerate bitsandbytes",
    "gptq": "accelerate optimum gptqmodel",
    "awq": "accelerate gptqmodel",
    "compressed-tensors": "accelerate compressed-tensors",
}
"""What to install for checkpoints that were quantised, by their method."""


def load_pretrained(
    config: ModelConfig, device: torch.device | None
) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """Returns the model that `config` names, on a device, tokenizer, processor and adapters.

    The adapters are paths and ids, not read yet: of a path that is an adapter, that and its base.

    Without a device, accelerate spreads the model over those that there are.
    The processor is what prepares images; None if the model reads text only.

    Raises:
        ModelError: there is no such model, it cannot be read, or it is of a kind that has no
            closed form.
        DependencyError: what reads it is not installed: it is quantised, or spread.
    """
    place = locate(config)
    config, shared = place.config, place.settings
    if device is None:
        require_accelerate()
    with load_errors(config.name):
        require_no_special(Path(config.name))
        settings = AutoConfig.from_pretrained(config.name, **shared)
        task = task_of(config, settings)
        tokenizer, processor = load_tokenizer(place, settings, task)
    quantised = getattr(settings, "quantization_config", None)
    placed: Any = "auto" if device is None else {"": device} if quantised else None
    with load_errors(config.name), _quantised(config.name, quantised):
        loaded: Any = LOADERS[task].from_pretrained(
            config.name,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            output_loading_info=True,
            device_map=placed,
            **shared,
        )
    model, loading = loaded
    lost = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if lost:
        raise ModelError(
            f"model {config.name} lacks {len(lost)} of its weights, such as {lost[0]}: they would "
            "be random; get the complete checkpoint"
        )
    model = model.to(device) if placed is None else model
    return model, tokenizer, processor, config.adapters


def on_this_machine(config: ModelConfig, named: Collection[str] = ()) -> ModelConfig:
    """Returns settings with the hub's folder on this machine for each id: nothing is fetched.

    Args:
        config: what an index names, which may come from somebody else.
        named: ids and paths that the user has named, which stay as they are.

    Raises:
        ModelError: a model or an adapter is not on this machine.
    """

    def folder(name: str, revision: str | None = None) -> str:
        if name in named or Path(name).exists():
            return name
        try:
            return snapshot_download(name, revision=revision, local_files_only=True)
        except (OSError, ValueError):  # it is not there, or is no id
            raise ModelError(
                f"cannot load model {name}: the index names it, and it is not on this machine; if "
                "you know it, give it as --model, or fetch it with `hf download`"
            ) from None

    adapters = tuple(map(folder, config.adapters))
    return replace(config, name=folder(config.name, config.revision), adapters=adapters)


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Raises ModelError with one line, whatever goes wrong in reading a model."""
    try:
        yield
    except (ForvalueError, MemoryError):
        raise
    except UnpicklingError as error:
        raise ModelError(f"cannot load model {name}: {PICKLED}") from error
    except Exception as error:  # of a damaged file, the libraries raise nearly anything
        raise ModelError(cannot_load(name, error)) from error


@contextmanager
def _quantised(name: str, settings: Any) -> Iterator[None]:
    """Raises DependencyError if the package that reads a quantised checkpoint is missing.

    Raises:
        DependencyError: a package is missing.
    """
    try:
        yield
    except ImportError as error:
        if not settings:
            raise
        asked = settings if isinstance(settings, dict) else settings.to_dict()
        method = str(getattr(asked["quant_method"], "value", asked["quant_method"]))
        packages = PACKAGES.get(method)
        how = f"pip install {packages}" if packages else first_line(error)
        raise DependencyError(f"{name} is quantised with {method}: {how}") from error
