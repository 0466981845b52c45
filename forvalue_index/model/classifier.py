"""Sequence classifiers: their last linear layer, and texts as they take them.

A classifier is read as a language model of one prediction: the error is onehot(class) -
softmax(class logits), the state is the input of the last layer, wherever the text is pooled.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from forvalue_index.errors import ModelError
from forvalue_index.model.batching import Batch, padded
from forvalue_index.model.head import OTHER, Head, effective, hidden_states, whole
from forvalue_index.model.head_probe import differ, probe_ids, try_on
from forvalue_index.model.offload import input_device, stay
from forvalue_index.records import Sample

ANY_ID = 1 << 16
"""Ids to try a model with that takes any: those of CANINE are characters."""

Pool = Literal["before", "first", "last"]
"""Where a text becomes one state: before the last layer, or at a token behind it."""


@dataclass(frozen=True)
class ClassInputs:
    """How a classifier takes texts.

    An encoder sees what is to the right of a token, so padding is masked, and filled with the id
    that positions are counted without.
    """

    pool: Pool
    pad_id: int | None
    masked: bool  # takes an attention mask
    typed: bool  # takes token types

    def collate(self, samples: Sequence[Sample], positions: list[int]) -> Batch:
        """Returns the batch of the samples at `positions`, each with its class."""
        members = [samples[i] for i in positions]
        ids = [sample.input_ids for sample in members]
        inputs = {"input_ids": padded(ids, self.pad_id or 0)}
        length = inputs["input_ids"].shape[1]
        if self.masked:
            inputs["attention_mask"] = padded([np.ones_like(row) for row in ids], 0)
        if self.typed and all(sample.token_types is not None for sample in members):
            inputs["token_type_ids"] = padded([_types(sample) for sample in members], 0)
        rows = torch.arange(len(members))
        places = torch.tensor([self._place(row) for row in ids])
        return Batch(
            positions,
            inputs,
            rows if self.pool == "before" else rows * length + places,
            torch.tensor([sample.label for sample in members]),
            rows,
            [1] * len(members),
        )

    def _place(self, ids: Any) -> int:
        """Returns the token whose state the class is read from."""
        if self.pool != "last":
            return 0
        tokens = np.flatnonzero(ids != self.pad_id) if self.pad_id is not None else [len(ids) - 1]
        return int(tokens[-1]) if len(tokens) else 0


def _types(sample: Sample) -> Any:
    return sample.token_types


def find_class_head(model: Any) -> tuple[Head, ClassInputs]:
    """Returns the last layer of a sequence classifier, and how it takes texts.

    Raises:
        ModelError: it is no classifier of one label, or its logits are no linear layer's output.
    """
    name, config = type(whole(model)).__name__, model.config
    n_labels = config.num_labels
    if n_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or "regression"
        raise ModelError(
            f"{name} is made for {kind.replace('_', ' ')} ({n_labels} outputs): the closed form is "
            "for one label out of several; give a model of that kind"
        )
    probe = _probe(model)
    with _calls(model, n_labels) as calls:
        logits = try_on(model, probe)
    if tuple(logits.shape) != (1, n_labels) or not torch.isfinite(logits).all():
        raise ModelError(
            f"{name} does not give {n_labels} finite logits for a short text: check its weights, "
            f"or "
            "try --dtype float32"
        )
    for module, hidden, output in reversed(calls):
        for pool, place in _POOLS:
            if output.dim() == (2 if pool == "before" else 3) and _same(output[place], logits):
                layer = effective(module)
                stay(layer)
                head = Head(layer, n_labels, hidden.shape[-1])
                if _same(head.logits(hidden[place].to(layer.weight.device)), logits):
                    return head, _inputs(model, pool)
    raise ModelError(
        f"{name}: its logits are not the output of a linear layer; "
        f"the closed form cannot be right for it; {OTHER}"
    )


_POOLS: tuple[tuple[Pool, Any], ...] = (
    ("before", slice(None)),
    ("last", (slice(None), -1)),
    ("first", (slice(None), 0)),
)


def _inputs(model: Any, pool: Pool) -> ClassInputs:
    names = inspect.signature(whole(model).forward).parameters
    return ClassInputs(
        pool,
        getattr(model.config.get_text_config(), "pad_token_id", None),
        "attention_mask" in names,
        "token_type_ids" in names,
    )


def class_surroundings(model: Any, head: Head, inputs: ClassInputs) -> dict[str, bool]:
    """Returns what changes a text's state beside its tokens: see `head_probe.surroundings`."""
    ids = _probe(model)[0].cpu().numpy().astype(np.int32)
    text, longer = _text(ids), _text(np.concatenate([ids[:-1], ids]))

    def first(*texts: Sample) -> Tensor:
        """Returns the state of the first text in a batch."""
        batch = inputs.collate(texts, [*range(len(texts))]).to(input_device(model))
        found = hidden_states(model, head, batch.inputs)
        return found.reshape(-1, found.shape[-1])[batch.predictors[0].to(found.device)]

    alone = first(text)
    if not differ(first(text, longer), alone):
        return {}
    twisted = _text(np.concatenate([ids[-2::-1], ids[-1:]]))
    return {"padding_matters": True, "batch_matters": differ(first(text, twisted), alone, 5)}


def _probe(model: Any) -> Tensor:
    """Returns the ids of a trial, [1, t], ended by the end token: encoder-decoders pool there."""
    config = model.config.get_text_config()
    vocabulary = getattr(config, "vocab_size", ANY_ID)  # a model that hashes ids has none
    probe = probe_ids(vocabulary, input_device(model))
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        probe[0, -1] = end
    return probe


def _text(ids: Any) -> Sample:
    return Sample("", "", {}, ids, np.zeros(len(ids), np.bool_), False, "", label=0)


def _same(a: Tensor, b: Tensor) -> bool:
    """Returns whether tensors are equal, up to the rounding of half precision."""
    return a.shape == b.shape and not differ(a, b.to(a.device))


@contextmanager
def _calls(model: nn.Module, width: int) -> Iterator[list[tuple[Any, Tensor, Tensor]]]:
    """Records the layers with a weight whose outputs are `width` wide: layer, input, output."""
    calls: list[tuple[Any, Tensor, Tensor]] = []

    def record(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given: Any = args[0] if args else next(iter(kwargs.values()), None)
        tensors = isinstance(given, Tensor) and isinstance(output, Tensor)
        if tensors and output.shape[-1:] == (width,) and given.dim() == output.dim():
            calls.append((module, given, output))

    with ExitStack() as stack:
        for module in model.modules():
            if getattr(module, "weight", None) is not None:
                handle = module.register_forward_hook(record, with_kwargs=True)
                stack.callback(handle.remove)
        yield calls
