"""A model, loaded from a path or the hub, and its identity.

Loading is transformers' own. This file adds one-line errors, a hash of the weights, and the length
that a sample may have.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from forvalue_index.config import ModelConfig
from forvalue_index.errors import ModelError
from forvalue_index.model.adapters import AdapterSet, load_adapters, no_adapters, switch
from forvalue_index.model.batching import Batch, collate
from forvalue_index.model.classifier import class_surroundings, find_class_head
from forvalue_index.model.evaluation import evaluating
from forvalue_index.model.forward_settings import forward_settings
from forvalue_index.model.head import Head, hidden_states, whole
from forvalue_index.model.head_probe import find_head, surroundings
from forvalue_index.model.load import load_pretrained
from forvalue_index.model.model_lock import model_lock
from forvalue_index.model.offload import kept, own_names
from forvalue_index.model.tokenizer import max_length, max_positions
from forvalue_index.model.vision import VisionProcessor
from forvalue_index.records import Sample


@dataclass(frozen=True)
class Checkpoint:
    """One state of the model that influence is measured at: itself, or under one adapter."""

    head: Head
    weight: float = 1.0  # of its influence in the sum
    adapter: str | None = None  # its name in the model; None: there is nothing to switch


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer and its head.

    Usually it has one checkpoint; with several adapters it has as many, of heads of one size.
    """

    name: str
    model: Any  # a transformers model, or one that PEFT has wrapped
    tokenizer: Any
    checkpoints: tuple[Checkpoint, ...]
    device: torch.device
    max_positions: int | None  # the longest input it was made for; None: no limit known
    task: str = "causal"  # or "classification", "image-text"
    vision: VisionProcessor | None = None  # how it reads images, if it does
    padding_matters: bool = False  # whether what is to the right of a token changes its state
    batch_matters: bool = False  # whether other texts in a batch do, so that each is read alone
    collate: Callable[[Sequence[Sample], list[int]], Batch] = collate
    """Makes the batch of the samples at some positions, with all that the model takes."""
    kind: Callable[[Sample], Hashable] = lambda _: None
    """Tells what samples must have in common to share a batch."""

    @property
    def head(self) -> Head:
        """The head, of the first checkpoint if there are several."""
        return self.checkpoints[0].head

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def activate(self, checkpoint: int) -> Head:
        """Switches the model to a checkpoint and returns its head."""
        chosen = self.checkpoints[checkpoint]
        if chosen.adapter is not None:
            switch(self.model, chosen.adapter)
        return chosen.head

    def predicting(self, batch: Batch, checkpoint: int, *, gradients: bool = False) -> Tensor:
        """Returns the states that a batch's targets are read from, [n, d], in the model's dtype.

        The checkpoint is active afterwards. With `gradients`, states carry them to the weights.
        """
        head = self.activate(checkpoint)
        if batch.lengths is None or not self.length_matters:
            states = hidden_states(self.model, head, batch.inputs, gradients=gradients)
            return states.reshape(-1, states.shape[-1])[batch.predictors]
        # Of a sample the two texts may differ in length, where all of a pass may not.
        parts = dict[int, Tensor]()
        for length, rows in self._together(batch.lengths):
            inputs = {name: value[rows, :length] for name, value in batch.inputs.items()}
            found = hidden_states(self.model, head, inputs, gradients=gradients)
            parts |= dict(zip(rows, found, strict=True))
        width = max(batch.lengths)
        each = [pad(parts[row], (0, 0, 0, width - len(parts[row]))) for row in sorted(parts)]
        return torch.cat(each)[batch.predictors]

    def _together(self, lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Returns the texts that may be read in one pass, each group after its length."""
        if self.batch_matters:
            return [(length, [row]) for row, length in enumerate(lengths)]
        rows = range(len(lengths))
        return [(own, [row for row in rows if lengths[row] == own]) for own in set(lengths)]

    @property
    def classes(self) -> dict[str, int] | None:
        """The classes by name, of a sequence classifier."""
        if self.task != "classification":
            return None
        return {name: number for number, name in self.model.config.id2label.items()}

    @property
    def length_matters(self) -> bool:
        """Whether a token's state depends on the length of its batch, padding included.

        It does with rotary positions that are stretched for long inputs.
        """
        if self.padding_matters:
            return True
        rope = getattr(self.model.config.get_text_config(), "rope_parameters", None) or {}
        nested = [value for value in rope.values() if isinstance(value, dict)]
        kinds = {part.get("rope_type") for part in (rope, *nested)}
        return bool(kinds & {"dynamic", "longrope"})

    def max_length(self, wanted: int | None) -> int:
        """Returns the length that samples are cut to: `wanted`, or the model's own limit.

        Raises:
            ModelError: more is wanted than the model has positions for.
        """
        return max_length(self.max_positions, wanted)

    def fingerprint(self) -> dict[str, Any]:
        """Returns the hashes that make this model and tokenizer the same as another's."""
        parts: dict[str, Any] = {
            "weights": _weights_hash(self.model, [part.adapter for part in self.checkpoints]),
            "tokenizer": _tokenizer_hash(self.tokenizer),
            "head": self.head.describe(),
            "settings": forward_settings(self.model.config),
        }
        if self.vision is not None:
            parts["image processor"] = self.vision.fingerprint()
        if self.checkpoints[0].adapter is not None:
            parts["adapter weights"] = [checkpoint.weight for checkpoint in self.checkpoints]
        return parts


def load_model(config: ModelConfig, device: str | None = None) -> LanguageModel:
    """Returns the model and tokenizer that `config` names, on `device` (default: CUDA if any).

    "auto" lets accelerate spread it over all devices, as far as it is needed.

    Raises:
        DependencyError: something optional is missing, accelerate for one.
        ModelError: there is no such model, it cannot be read, or its head is not understood.
    """
    with model_lock():
        model, tokenizer, processor, paths = load_pretrained(config, find_device(device))
        adapters = no_adapters()
        if paths:
            model, adapters = load_adapters(model, paths, config.adapter_weights)
        return wrap_model(model, tokenizer, adapters, processor)


def wrap_model(
    model: Any, tokenizer: Any, adapters: AdapterSet | None = None, processor: Any = None
) -> LanguageModel:
    """Returns a loaded transformers model, as it is and where it is, made ready for reading.

    It may go on training afterwards: dropout is off, and gradients are not made, only while it is
    read. `adapters` are those that PEFT has loaded into it whose influences are added up; without
    them the model is read with what is active in it. With its processor it reads images as well.
    """
    own = whole(model)
    if not isinstance(own, nn.Module) or not hasattr(own, "get_output_embeddings"):
        kind = type(own).__name__
        raise ModelError(
            f"{kind} is not a model of transformers: give one that was loaded, such as "
            "AutoModelForCausalLM.from_pretrained(...), or a path as it is; of one in a wrapper of "
            "torch, give its .module"
        )
    with model_lock(), evaluating(model):
        return _wrapped(model, tokenizer, adapters, processor)


def _wrapped(
    model: Any, tokenizer: Any, adapters: AdapterSet | None, processor: Any
) -> LanguageModel:
    classifies = type(whole(model)).__name__.endswith("ForSequenceClassification")
    checkpoints, settings = [], dict[str, Any]()
    for name, weight in adapters or no_adapters():
        if name is not None:
            switch(model, name)
        if classifies:
            head, inputs = find_class_head(model)
            settings = {"task": "classification", "collate": inputs.collate}
            settings |= class_surroundings(model, head, inputs)
        else:
            head = find_head(model)
            settings = surroundings(model, head)
        checkpoints.append(Checkpoint(head, weight, name))
    if processor is not None:
        vision = VisionProcessor(processor, model.config)
        settings |= {"task": "image-text", "vision": vision, "kind": vision.kind}
        settings["collate"] = partial(vision.collate, dtype=model.dtype)
    if settings.get("batch_matters"):
        settings["kind"] = id
    return LanguageModel(
        whole(model).name_or_path,
        model,
        tokenizer,
        tuple(checkpoints),
        checkpoints[0].head.device,
        max_positions(model.config),
        **settings,
    )


def find_device(name: str | None) -> torch.device | None:
    """Returns a device by its name (default: CUDA if there is one); None for "auto": several.

    Raises:
        ModelError: it is not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} cannot be used: choose cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {name!r} was requested, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices: choose another"
        )
    return device


def _weights_hash(model: nn.Module, adapters: Sequence[str | None]) -> str:
    """Returns a hash over every parameter and buffer in its own dtype; tied ones count once.

    An adapter counts by its place among those that are read: a trainer names it otherwise.
    """
    places = {f".{name}": f".adapter{place}" for place, name in enumerate(adapters)}
    named = re.compile("|".join(rf"{re.escape(name)}(?=\.|$)" for name in places))

    def digest(name: str) -> bytes:
        tensor = kept(model, name).contiguous().cpu()
        known = named.sub(lambda found: places[found[0]], name)
        header = f"{known} {tensor.dtype} {tuple(tensor.shape)}".encode()
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        return hashlib.blake2b(data, digest_size=16, key=hashlib.sha256(header).digest()).digest()

    with ThreadPoolExecutor() as pool:  # hashlib releases the lock
        digests = list(pool.map(digest, sorted(own_names(model))))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        value = json.loads(backend.to_str())
        value.pop("truncation", None)  # a use of the tokenizer, not a part of it
        value.pop("padding", None)
    elif not hasattr(tokenizer, "get_vocab"):
        raise ModelError(
            f"the tokenizer is {type(tokenizer).__name__}: give wrap_model(model, tokenizer) that "
            "of the model, from AutoTokenizer.from_pretrained(...)"
        )
    else:
        value = [type(tokenizer).__name__, tokenizer.get_vocab()]
    named = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([value, named], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
