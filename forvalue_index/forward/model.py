"""A causal language model, loaded from a path or the hub, and its identity.

Loading is transformers' own. What this file adds: one-line errors, a hash of the weights, and the
length that a sample may have.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from forvalue_index.config import ModelConfig
from forvalue_index.errors import ModelError
from forvalue_index.forward.head import Head, find_head

DEFAULT_MAX_LENGTH = 2048


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode with its tokenizer and its head."""

    name: str
    model: Any  # a transformers model
    tokenizer: Any
    head: Head
    device: torch.device
    max_positions: int | None  # the longest input it was made for; None: no limit known

    @property
    def length_matters(self) -> bool:
        """Whether a token's state depends on the length of its batch, padding included.

        So it is with rotary positions that are stretched for long inputs.
        """
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        nested = [value for value in rope.values() if isinstance(value, dict)]
        kinds = {part.get("rope_type") for part in (rope, *nested)}
        return bool(kinds & {"dynamic", "longrope"})

    def max_length(self, wanted: int | None) -> int:
        """Returns the length that samples are cut to: `wanted`, or the model's own limit.

        Raises:
            ModelError: more is wanted than the model has positions for.
        """
        if wanted is None:
            return min(self.max_positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
        if self.max_positions is not None and wanted > self.max_positions:
            raise ModelError(
                f"max length {wanted} is over the model's {self.max_positions} positions: "
                f"use --max-length {self.max_positions} or less"
            )
        return wanted

    def fingerprint(self) -> dict[str, Any]:
        """Returns the hashes that make this model and tokenizer the same as another's."""
        return {
            "weights": _weights_hash(self.model),
            "tokenizer": _tokenizer_hash(self.tokenizer),
            "head": self.head.describe(),
        }


def load_model(config: ModelConfig, device: str | None = None) -> LanguageModel:
    """Returns the model and tokenizer that `config` names, on `device` (default: CUDA if any).

    Raises:
        ModelError: there is no such model, it cannot be read, or its head is not understood.
    """
    target = _device(device)
    shared = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.name, **shared)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.name,
            dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
            output_loading_info=True,
            **shared,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"cannot load model {config.name}: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # a truncated or damaged weights file
            raise ModelError(f"cannot load model {config.name}: {_first_line(error)}") from error
        raise
    model, loading = loaded
    lost = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if lost:
        raise ModelError(
            f"model {config.name} lacks {len(lost)} of its weights, {lost[0]} first: they would be "
            "random; get the whole checkpoint"
        )
    return wrap_model(model.to(target), tokenizer)


def wrap_model(model: Any, tokenizer: Any) -> LanguageModel:
    """Returns a loaded transformers model, as it is and where it is, made ready for reading."""
    model = model.eval().requires_grad_(False)
    device = next(model.parameters()).device
    head = find_head(model)
    return LanguageModel(
        model.name_or_path, model, tokenizer, head, device, _max_positions(model.config)
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is not one to use: cpu, cuda or cuda:N are")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {name!r} is wanted, but torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _max_positions(config: Any) -> int | None:
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _weights_hash(model: nn.Module) -> str:
    """Returns a hash over every parameter and buffer in its own dtype; tied ones count once."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())

    def digest(name: str) -> bytes:
        tensor = tensors[name].detach().contiguous().cpu()
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        return hashlib.blake2b(data, digest_size=16, key=hashlib.sha256(header).digest()).digest()

    with ThreadPoolExecutor() as pool:  # hashlib releases the lock
        digests = list(pool.map(digest, sorted(tensors)))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        value = json.loads(backend.to_str())
        value.pop("truncation", None)  # a use of the tokenizer, not a part of it
        value.pop("padding", None)
        text = json.dumps(value, sort_keys=True)
    else:
        text = json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
