"""Which head a causal language model has, found by trial passes.

The step between the unembedding's output and the logits is not believed from a name: numbers are
put in the place of the output, and what the model makes of them decides. Other steps are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from forvalue_index.errors import ForvalueError, ModelError
from forvalue_index.model.head import OTHER, Head, effective, head_input, hidden_states, run, whole
from forvalue_index.model.offload import input_device, stay
from forvalue_index.model.tokenizer import first_line

PROBE = 6  # tokens of a trial
HIGH = 1e4  # an output that every soft-cap cuts
NUMBERS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "final_logit_softcapping")
"""Settings that steps are named after; a measured number gives way to one that it equals."""


def find_head(model: Any) -> Head:
    """Returns the head of a causal language model, checked on a few short forward passes.

    Raises:
        ModelError: there is no unembedding, its output does not explain the model's logits, or a
            token's state depends on those that follow it.
    """
    name = type(whole(model)).__name__
    module = effective(model.get_output_embeddings())
    if module is None or getattr(module, "weight", None) is None:
        raise ModelError(f"{name} has no unembedding (output embeddings) to attribute to; {OTHER}")
    stay(module)
    config = model.config.get_text_config()
    probe = probe_ids(config.vocab_size, input_device(model))
    with torch.no_grad(), head_input(module, stop=False) as states:
        logits = try_on(model, probe)
    if not states:
        raise ModelError(f"{name} does not use its unembedding to predict tokens; {OTHER}")
    if len(states) > 1:
        raise ModelError(
            f"{name} uses its unembedding {len(states)} times in a pass, and not once: its closed "
            f"form is not known; {OTHER}"
        )
    [hidden] = states
    if tuple(logits.shape[:-1]) != (1, PROBE) or hidden.numel() != PROBE * hidden.shape[-1]:
        raise ModelError(
            f"{name} does not give one distribution per token (its logits are "
            f"{'x'.join(map(str, logits.shape))} for {PROBE} tokens): its closed form is not "
            f"known; {OTHER}"
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


def probe_ids(vocabulary: int, device: torch.device) -> Tensor:
    """Returns the ids of a trial, [1, t], from the middle of a vocabulary: no special tokens."""
    return (torch.arange(PROBE, device=device)[None] + vocabulary // 2) % vocabulary


def _require_causal(model: Any, module: nn.Module, probe: Tensor, hidden: Tensor) -> None:
    """Checks that no state depends on the tokens that follow it.

    Raises:
        ModelError: one does.
    """
    other = probe.clone()
    other[0, -1] = probe[0, 0]
    with torch.no_grad(), head_input(module, stop=False) as states:
        run(model, {"input_ids": other})
        after = states[-1].reshape(PROBE, -1)[:-1]
    if differ(after, hidden[:-1]):
        raise ModelError(
            f"{type(whole(model)).__name__} is not causal: a token's state depends on the tokens "
            "that follow it, so no single forward pass predicts all of them; use a decoder "
            "(is_decoder=True)"
        )


def try_on(model: Any, ids: Tensor) -> Tensor:
    """Returns the logits that a model gives a short text, without gradients.

    Raises:
        ModelError: it cannot read a text by itself.
    """
    try:
        with torch.no_grad():
            logits: Tensor = run(model, {"input_ids": ids}).logits
            return logits
    except (ForvalueError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's code raises nearly anything
        raise ModelError(
            f"{type(whole(model)).__name__} cannot read a short text by itself "
            f"({first_line(error)}); {OTHER}"
        ) from error


def surroundings(model: Any, head: Head) -> dict[str, bool]:
    """Returns what changes the state of a token beside the tokens before it.

    "padding_matters": padding on the right, as with a prefix model; "batch_matters": the other
    texts of its batch, as where experts take so many tokens and no more.
    """
    vocabulary = model.config.get_text_config().vocab_size
    probe = probe_ids(vocabulary, input_device(model))
    other = (probe.flip(1) + 1) % vocabulary

    def first(*rows: Tensor) -> Tensor:
        """Returns the states of the first text in a batch."""
        ids = torch.cat(rows)
        return hidden_states(model, head, {"input_ids": ids}).reshape(*ids.shape, -1)[0, :PROBE]

    alone = first(probe)
    longer = torch.cat([other, other[:, :3]], 1)
    if not differ(first(torch.nn.functional.pad(probe, (0, 3)), longer), alone):
        return {}
    # Rounding alone may choose another expert; reading each text alone is slow.
    return {"padding_matters": True, "batch_matters": differ(first(probe, other), alone, 5)}


def differ(a: Tensor, b: Tensor, times: float = 1) -> bool:
    """Returns whether states differ by more than the rounding of their type, or `times` that."""
    share = times * (1e-4 if a.dtype == b.dtype == torch.float32 else 0.02)
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

    def slope(size: float) -> tuple[Tensor, Tensor, float]:
        outputs, logits = logits_of(size)
        return outputs, logits, float((outputs * logits).sum() / outputs.square().sum())

    small, made, scale = slope(0.1)
    large, most = logits_of(HIGH)
    highest = float(most.abs().max())
    cap = None if highest > 0.5 * abs(scale) * float(large.abs().max()) else highest
    if cap is not None and cap < 10 * abs(scale):  # a cap bends numbers near its size
        small, made, scale = slope(0.01 * cap / abs(scale))
    names = [getattr(config, name, None) for name in NUMBERS]
    known = [1.0] + [v for x in names if isinstance(x, int | float) and x for v in (x, 1 / x)]
    scale = next((float(v) for v in known if abs(v - scale) < 2e-3 * abs(v)), scale)
    head = Head(module, made.shape[-1], 0, scale, cap)
    for outputs, logits in ((small, made), (large, most), logits_of(cap or 10.0)):
        difference = (head.step(outputs) - logits).abs().max()
        if not difference <= 0.02 * logits.abs().max():
            raise _unexplained(type(whole(model)).__name__)
    return scale, cap


def _unexplained(name: str) -> ModelError:
    return ModelError(
        f"{name}: its logits are not its unembedding's output, scaled or soft-capped; "
        f"the closed form cannot be right for it; {OTHER}"
    )
