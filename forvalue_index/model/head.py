"""The unembedding: where it is in a model, and how its output becomes logits.

Most models end in `logits = W h`. Some scale (Cohere, Granite) or soft-cap (Gemma 2) what comes out
of W. The influence is about W, so the error of a token goes back through that step by the chain
rule. Which step a model has is not believed from a name: numbers are put in the place of the
unembedding's output, and what the model makes of them decides. What is no such step is refused.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from forvalue_index.errors import ModelError
from forvalue_index.model.evaluation import evaluating
from forvalue_index.model.model_lock import model_lock
from forvalue_index.model.offload import input_device, stay

PROBE = 6  # tokens of a trial
HIGH = 1e4  # an output that every soft-cap cuts
NUMBERS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping")
"""Settings that steps are named after; a measured number gives way to one that it equals."""


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
        return self._step(self._output(hidden))

    def errors(
        self, hidden: Tensor, targets: Tensor, room: Room | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the errors [n, v] and losses [n] (nats) of tokens, both float32.

        An error is the gradient of the token's log-likelihood with respect to W h:
        onehot(target) - softmax(logits), through the chain of the step. With `room` the errors
        stand in memory that the next call with it takes again.
        """
        output = self._output(hidden, room)  # [n, v]
        logits, targets = self._step(output), targets[:, None]
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

    def _step(self, output: Tensor) -> Tensor:
        if self.cap is not None:
            return self.cap * torch.tanh(output * (self.scale / self.cap))
        return output if self.scale == 1 else output * self.scale


@contextmanager
def head_input(module: nn.Module, *, stop: bool) -> Iterator[Callable[[], Tensor]]:
    """Records the input of `module` in this thread's next pass; with `stop`, ends the pass there.

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
        yield lambda: seen[-1]
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
            return states()
        except (IndexError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "out of bounds" not in str(error):
                raise
            name, length = type(whole(model)).__name__, inputs["input_ids"].shape[1]
            raise ModelError(
                f"{name} cannot read {length} tokens or the ids in them ({error}): "
                "try a smaller --max-length, and make sure that the tokenizer is the model's"
            ) from error
    raise ModelError(f"{type(whole(model)).__name__} gave logits without its unembedding module")


def find_head(model: Any) -> Head:
    """Returns the head of a causal language model, checked on a few short forward passes.

    Raises:
        ModelError: there is no unembedding, its output does not explain the model's logits, or a
            token's state depends on those that follow it.
    """
    name = type(whole(model)).__name__
    module = effective(model.get_output_embeddings())
    if module is None or getattr(module, "weight", None) is None:
        raise ModelError(f"{name} has no unembedding (output embeddings) to attribute to")
    stay(module)
    config = model.config.get_text_config()
    probe = probe_ids(config.vocab_size, input_device(model))
    with torch.no_grad(), head_input(module, stop=False) as states:
        try:
            logits = run(model, {"input_ids": probe}).logits
            hidden = states()
        except IndexError as error:
            raise ModelError(f"{name} does not use its unembedding to predict tokens") from error
    if tuple(logits.shape[:-1]) != (1, PROBE) or hidden.numel() != PROBE * hidden.shape[-1]:
        raise ModelError(
            f"{name} does not give one distribution per token (its logits are "
            f"{'x'.join(map(str, logits.shape))} for {PROBE} tokens): its closed form is not known"
        )
    logits, hidden = logits[0].float().to(hidden.device), hidden.reshape(PROBE, -1)
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{name} gives NaN or infinity for a short input; "
            "check its weights, or try --dtype float32"
        )
    _require_causal(model, module, probe, hidden)
    scale, cap = _measured_step(model, module, probe, config)
    head = Head(module, logits.shape[-1], hidden.shape[-1], scale, cap)
    with torch.no_grad():
        difference = (head.logits(hidden) - logits).abs().max()
    if difference > 0.02 * logits.abs().max() + 1e-6:
        raise _unexplained(name)
    return head


def effective(module: Any) -> Any:
    """Returns the layer that works in the place of a module that PEFT trained a copy of."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[module.active_adapters[0]]


def probe_ids(vocabulary: int, device: torch.device) -> Tensor:
    """Returns the ids of a trial, [1, t], from the middle of a vocabulary: no special tokens."""
    return (torch.arange(PROBE, device=device)[None] + vocabulary // 2) % vocabulary


def _require_causal(model: Any, module: nn.Module, probe: Tensor, hidden: Tensor) -> None:
    """Makes sure that no state depends on what follows it.

    Raises:
        ModelError: one does.
    """
    other = probe.clone()
    other[0, -1] = probe[0, 0]
    with torch.no_grad(), head_input(module, stop=False) as states:
        run(model, {"input_ids": other})
        after = states().reshape(PROBE, -1)[:-1]
    if differ(after, hidden[:-1]):
        raise ModelError(
            f"{type(whole(model)).__name__} is not causal: a token's state depends on the tokens "
            "that follow it, so no single forward pass predicts all of them; use a decoder "
            "(is_decoder=True)"
        )


def padding_matters(model: Any, head: Head) -> bool:
    """Returns whether padding on the right changes the state of a token, as with a prefix model."""
    probe = probe_ids(model.config.get_text_config().vocab_size, input_device(model))
    longer = torch.nn.functional.pad(probe, (0, 3))
    alone, padded = (
        hidden_states(model, head, {"input_ids": ids}).reshape(ids.shape[1], -1)[:PROBE]
        for ids in (probe, longer)
    )
    return differ(alone, padded)


def differ(a: Tensor, b: Tensor) -> bool:
    """Returns whether states differ by more than the rounding of their type."""
    share = 1e-4 if a.dtype == b.dtype == torch.float32 else 0.02
    return bool((a.float() - b.float()).abs().max() > share * b.float().abs().max() + 1e-6)


def _measured_step(
    model: Any, module: nn.Module, probe: Tensor, config: Any
) -> tuple[float, float | None]:
    """Returns scale and cap of the step between the unembedding's output and the logits.

    Raises:
        ModelError: it is another kind of step.
    """
    draws = torch.Generator().manual_seed(0)

    def logits_of(size: float) -> tuple[Tensor, Tensor]:
        """Returns invented outputs up to `size`, and the logits that the model makes of them."""
        invented: list[Tensor] = []

        def replace(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            numbers = (2 * torch.rand(output.shape, generator=draws) - 1) * size
            invented.append(numbers.to(output))
            return invented[-1]

        handle = module.register_forward_hook(replace)
        try:
            with torch.no_grad():
                logits = run(model, {"input_ids": probe}).logits[0].float()
        finally:
            handle.remove()
        outputs = invented[-1].reshape(PROBE, -1).float()
        return outputs[:, : logits.shape[-1]], logits.to(outputs.device)

    small, made = logits_of(0.1)
    scale = float((small * made).sum() / small.square().sum())
    large, most = logits_of(HIGH)
    highest = float(most.abs().max())
    cap = None if highest > 0.5 * abs(scale) * float(large.abs().max()) else highest
    names = [getattr(config, name, None) for name in NUMBERS]
    known = [1.0] + [v for x in names if isinstance(x, int | float) and x for v in (x, 1 / x)]
    scale = next((float(v) for v in known if abs(v - scale) < 2e-3 * abs(v)), scale)
    head = Head(module, made.shape[-1], 0, scale, cap)
    for outputs, logits in ((small, made), (large, most), logits_of(cap or 10.0)):
        difference = (head._step(outputs) - logits).abs().max()
        if not difference <= 0.02 * logits.abs().max():
            raise _unexplained(type(whole(model)).__name__)
    return scale, cap


def _unexplained(name: str) -> ModelError:
    return ModelError(
        f"{name}: its logits are not its unembedding's output, scaled or soft-capped; "
        "the closed form cannot be right for it"
    )
