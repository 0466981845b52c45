"""The unembedding: where it is in a model, and how its output becomes logits.

Most models end in `logits = W h`. Some scale (Cohere, Granite) or soft-cap (Gemma 2) what comes out
of W. The influence is about W, so the error of a token goes back through that step by the chain
rule. Which step a model has is not believed from its name: it is tried, and the logits of a real
forward pass decide. A model that none of the known steps explains is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from forvalue_index.errors import ModelError

Step = Literal["none", "scale", "softcap"]


class _HeadReachedError(Exception):
    """Ends a forward pass at the unembedding: nothing behind it is needed."""


@dataclass(frozen=True)
class Head:
    """The unembedding of a model and the step between its output z and the logits."""

    module: nn.Module
    vocabulary: int  # rows of W
    hidden: int  # columns of W
    step: Step
    amount: float  # logits = z * amount, or amount * tanh(z / amount)

    def describe(self) -> str:
        """Returns the head in words, for the fingerprint."""
        return f"{self.vocabulary} x {self.hidden}, {self.step} {self.amount:g}"

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [n, v] float32 of hidden states [n, d] in the model's dtype."""
        return self._step(self._output(hidden))

    def errors(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the errors [n, v] and losses [n] (nats) of tokens, both float32.

        An error is the gradient of the token's log-likelihood with respect to W h:
        onehot(target) - softmax(logits), through the chain of the step.
        """
        output = self._output(hidden)  # [n, v]
        log_likelihood = torch.log_softmax(self._step(output), dim=-1)
        losses = -log_likelihood.gather(1, targets[:, None]).squeeze(1)
        errors = log_likelihood.exp_().neg_()
        # An error sums to nothing; 1 - p would lose the digits of a token that is known by heart.
        errors.scatter_(1, targets[:, None], 0)
        errors.scatter_(1, targets[:, None], -errors.sum(1, keepdim=True))
        if self.step == "scale":
            errors *= self.amount
        elif self.step == "softcap":
            errors *= 1 - torch.tanh(output / self.amount) ** 2
        return errors, losses

    def _output(self, hidden: Tensor) -> Tensor:
        """Returns W h + b in float32, also for half-precision weights.

        Rounded to half precision, logits would have errors of a hundredth. A head that is more
        than a linear layer (quantised, or with an adapter) is left to its own arithmetic.
        """
        weight: Any = self.module.weight
        if type(self.module) is not nn.Linear or weight.dtype == torch.float32:
            output: Tensor = self.module(hidden)
            return output.float()
        if hidden.is_cuda:  # half-precision products, summed and kept in float32
            output = torch.mm(hidden, weight.T, out_dtype=torch.float32)
        else:
            output = hidden.float() @ weight.float().T
        bias: Any = self.module.bias
        return output if bias is None else output + bias.float()

    def _step(self, output: Tensor) -> Tensor:
        if self.step == "scale":
            return output * self.amount
        if self.step == "softcap":
            return self.amount * torch.tanh(output / self.amount)
        return output


@contextmanager
def _head_input(module: nn.Module, *, stop: bool) -> Iterator[Callable[[], Tensor]]:
    """Records the input of `module` during a forward pass; with `stop`, ends the pass there."""
    seen: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))
        if stop:
            raise _HeadReachedError

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield lambda: seen[-1]
    finally:
        handle.remove()


def hidden_states(model: nn.Module, head: Head, inputs: dict[str, Tensor]) -> Tensor:
    """Returns the states [b, t, d] that enter the unembedding, in the model's dtype.

    The forward pass ends there, so that no logits are computed.

    Raises:
        ModelError: the model's forward pass does not use its unembedding.
    """
    with torch.no_grad(), _head_input(head.module, stop=True) as states:
        try:
            model(**inputs, use_cache=False)
        except _HeadReachedError:
            return states()
        except IndexError as error:
            length = inputs["input_ids"].shape[1]
            raise ModelError(
                f"{type(model).__name__} cannot read {length} tokens or the ids in them ({error}): "
                "try a smaller --max-length, and make sure that the tokenizer is the model's"
            ) from error
    raise ModelError(f"{type(model).__name__} gave logits without its unembedding module")


def find_head(model: Any) -> Head:
    """Returns the head of a causal language model, checked on two short forward passes.

    Raises:
        ModelError: there is no unembedding, its output does not explain the model's logits, or a
            token's state depends on those that follow it.
    """
    name = type(model).__name__
    module = model.get_output_embeddings()
    if module is None or getattr(module, "weight", None) is None:
        raise ModelError(f"{name} has no unembedding (output embeddings) to attribute to")
    config = model.config.get_text_config()
    probe = torch.arange(4, device=next(model.parameters()).device)[None] % config.vocab_size
    other = probe.clone()
    other[0, -1] = 4 % config.vocab_size
    with torch.no_grad(), _head_input(module, stop=False) as states:
        model(input_ids=other, use_cache=False)
        after = states().reshape(-1, states().shape[-1])[-4:].float()
        logits = model(input_ids=probe, use_cache=False).logits[0].float()  # [4, v]
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{name} gives NaN or infinity for a short input; "
            "check its weights, or try --dtype float32"
        )
    hidden = states().reshape(-1, states().shape[-1])[-4:]
    if (after[:-1] - hidden[:-1].float()).abs().max() > 0.02 * hidden.abs().max() + 1e-6:
        raise ModelError(
            f"{name} is not causal: a token's state depends on the tokens that follow it, so there "
            "is no forward pass that predicts all of them; use a decoder (is_decoder=True)"
        )
    for step, amount in _possible_steps(config):
        head = Head(module, logits.shape[-1], hidden.shape[-1], step, amount)
        with torch.no_grad():
            difference = (head.logits(hidden) - logits).abs().max()
        if difference <= 0.02 * logits.abs().max() + 1e-6:
            return head
    raise ModelError(
        f"{name}: its logits are not its unembedding's output, scaled or soft-capped; "
        "the closed form cannot be right for it"
    )


def _possible_steps(config: Any) -> Iterator[tuple[Step, float]]:
    """Yields what the configuration declares, then no step at all."""
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if cap := getattr(config, name, None):
            yield "softcap", float(cap)
    scales = (("logit_scale", False), ("lm_head_multiplier", False), ("logits_scaling", True))
    for name, inverse in scales:
        value = getattr(config, name, None)
        if isinstance(value, float | int) and value:
            yield "scale", 1 / value if inverse else float(value)
    yield "none", 1.0
