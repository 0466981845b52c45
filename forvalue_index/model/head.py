"""The unembedding: the last linear layer of a model, and how its output becomes logits.

Most models end in `logits = W h`. Some scale (Cohere, Granite) or soft-cap (Gemma 2) the output of
W. The influence is about W, so the error of a token goes back through that step by the chain rule.
`head_probe.py` finds out which step a model has.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from forvalue_index.errors import ModelError
from forvalue_index.model.evaluation import evaluating
from forvalue_index.model.model_lock import model_lock

OTHER = "give a model of another kind (the documentation has a list of those that work)"


class _HeadReachedError(Exception):
    """Ends a forward pass at the head: nothing behind it is needed."""


class Room:
    """Memory for the logits and errors of a chunk of tokens, taken again by the next chunk.

    New memory costs a CPU as much as the softmax: the system clears every page of it.
    """

    def __init__(self) -> None:
        self._taken: dict[str, Tensor] = {}
        self._widened: tuple[Tensor, int, Tensor] | None = None

    def tensor(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns a tensor of a shape, float32 and on the device of `like`, with any content."""
        size = math.prod(shape)
        taken = self._taken.get(name)
        if taken is None or len(taken) < size or taken.device != like.device:
            taken = self._taken[name] = torch.empty(size, device=like.device)
        return taken[:size].view(*shape)

    def widened(self, weight: Tensor) -> Tensor:
        """Returns half-precision weights as float32, made once for all chunks that use them."""
        kept = self._widened
        if kept is None or kept[0] is not weight or kept[1] != weight._version:
            kept = self._widened = (weight, weight._version, weight.detach().float())
        return kept[2]


@dataclass(frozen=True)
class Head:
    """The last linear layer of a model and the step between its output z and the logits.

    logits = scale * z, or, with a cap, cap * tanh(scale * z / cap).
    """

    module: nn.Module
    vocabulary: int  # rows of W that have a logit; of a classifier: its classes
    hidden: int  # columns of W
    scale: float = 1.0
    cap: float | None = None

    @property
    def device(self) -> torch.device:
        """Where it works."""
        weight: Any = self.module.weight
        device: torch.device = weight.device
        return device

    def describe(self) -> str:
        """Returns the head in words, for the fingerprint."""
        step = "" if self.scale == 1 else f", scale {self.scale:g}"
        return f"{self.vocabulary} x {self.hidden}{step}" + (
            "" if self.cap is None else f", soft-cap {self.cap:g}"
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [n, v] float32 of hidden states [n, d] in the model's dtype."""
        return self.step(self._output(hidden))

    def errors(
        self, hidden: Tensor, targets: Tensor, room: Room | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the errors [n, v] and losses [n] (nats) of tokens, both float32.

        An error is the gradient of the token's log-likelihood with respect to W h:
        onehot(target) - softmax(logits), through the chain of the step. With `room` the errors are
        in memory that the next call with it overwrites.
        """
        output = self._output(hidden, room)  # [n, v]
        logits, targets = self.step(output), targets[:, None]
        out = None if room is None else room.tensor("errors", logits.shape, logits)
        errors = torch.softmax(logits, dim=-1, out=out)
        # The greatest logit has the share 1 / sum(exp(logit - greatest)).
        lead = logits.amax(1) - logits.gather(1, targets).squeeze(1)
        losses = lead - errors.amax(1).log()
        # An error sums to nothing; 1 - p would lose the digits of a token that is known by heart.
        errors.neg_().scatter_(1, targets, 0)
        errors.scatter_(1, targets, -errors.sum(1, keepdim=True))
        if self.scale != 1:
            errors *= self.scale
        if self.cap is not None:
            errors *= 1 - torch.tanh(output * (self.scale / self.cap)) ** 2
        return errors, losses

    def _output(self, hidden: Tensor, room: Room | None = None) -> Tensor:
        """Returns W h + b in float32, also for half-precision weights.

        Rounded to half precision, logits would have errors of a hundredth. A head that is more
        than a linear layer (quantised, or with an adapter) is left to its own arithmetic.
        """
        weight: Any = self.module.weight
        if type(self.module) is not nn.Linear:
            output: Tensor = self.module(hidden)
            return output[..., : self.vocabulary].float()
        if hidden.is_cuda and weight.dtype != torch.float32 and not torch.is_grad_enabled():
            # Half-precision products, summed and kept in float32; torch has no derivative of them.
            output = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        elif room is None:
            output = hidden.float() @ weight.float().T
        else:
            wide = weight if weight.dtype == torch.float32 else room.widened(weight)
            output = room.tensor("logits", (len(hidden), len(weight)), hidden)
            torch.mm(hidden.float(), wide.T, out=output)
        bias: Any = self.module.bias
        if bias is not None:
            output += bias.float()
        return output[..., : self.vocabulary]

    def step(self, output: Tensor) -> Tensor:
        """Returns the logits of the layer's output, float32."""
        if self.cap is not None:
            return self.cap * torch.tanh(output * (self.scale / self.cap))
        return output if self.scale == 1 else output * self.scale


@contextmanager
def head_input(module: nn.Module, *, stop: bool) -> Iterator[list[Tensor]]:
    """Records each input of `module` in this thread's next pass; with `stop`, ends the pass there.

    A pass that the caller's own code makes in another thread is left alone.
    """
    seen: list[Tensor] = []
    weight: Any = module.weight
    thread = get_ident()

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != thread:
            return
        states = args[0] if args else next(iter(kwargs.values()))
        seen.append(states.to(weight.device))
        if stop:
            raise _HeadReachedError

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def whole(model: Any) -> Any:
    """Returns the transformers model, also of one that PEFT has wrapped."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def run(model: Any, inputs: dict[str, Tensor]) -> Any:
    """Returns the output of a forward pass that keeps nothing for generation."""
    if "use_cache" in inspect.signature(whole(model).forward).parameters:
        return model(**inputs, use_cache=False)
    return model(**inputs)


def hidden_states(
    model: Any, head: Head, inputs: dict[str, Tensor], *, gradients: bool = False
) -> Tensor:
    """Returns the states [b, t, d] that enter the head, in the model's dtype.

    A classifier that picks a token first gives [b, d]. The forward pass ends there, so that no
    logits are computed. With `gradients`, they carry them to the weights that want some.

    Raises:
        ModelError: the model's forward pass does not use its head.
    """
    with (
        model_lock(),
        evaluating(model),
        torch.set_grad_enabled(gradients),
        head_input(head.module, stop=True) as states,
    ):
        try:
            run(model, inputs)
        except _HeadReachedError:
            return states[-1]
        except (IndexError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "out of bounds" not in str(error):
                raise
            name, length = type(whole(model)).__name__, inputs["input_ids"].shape[1]
            raise ModelError(
                f"{name} cannot read {length} tokens or the ids in them ({error}): "
                "try a smaller --max-length, and make sure that the tokenizer is the model's"
            ) from error
    raise ModelError(
        f"{type(whole(model)).__name__} gave logits without its unembedding module; {OTHER}"
    )


def effective(module: Any) -> Any:
    """Returns the layer that works in the place of a module that PEFT trained a copy of."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[module.active_adapters[0]]
