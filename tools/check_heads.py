"""Holds the closed form to autograd for every causal architecture that transformers offers.

    python tools/check_heads.py
    python tools/check_heads.py gemma2 opt --json

A tiny random model of each is built from its configuration, with generic small sizes. Its exact
influences, found as an index finds them, are compared with inner products of gradients of its own
log-likelihoods by its unembedding's weight: the error is the largest difference, relative to the
lengths of the two gradients. The samples go through the model in one padded batch on the one side,
and one by one on the other, so padding is held to nothing as well.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from forvalue_index.errors import ForvalueError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Sample
from forvalue_index.vectors.recipe import Raw

VOCABULARY = 96
TOLERANCE = 1e-4  # of the relative error
LARGEST = 30_000_000  # parameters of a model that counts as tiny
LENGTHS = ((5, 3), (0, 12), (9, 1), (2, 20), (7, 7))  # prompt and response of each sample

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "rotary_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
}
"""By the names that configurations share; each takes those that it knows."""

LADDER: tuple[dict[str, Any], ...] = (
    {"num_key_value_heads": 2, "head_dim": 8, "layer_types": None},
    {"num_key_value_heads": 2, "head_dim": 8},
    {"num_key_value_heads": 4, "head_dim": 8, "layer_types": None},
    {"num_key_value_heads": 4, "layer_types": None},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 2},
    {},
)
"""Sizes that some kinds want and others do not; the first that makes a working model is used."""

HYBRID = {"layer_types": ["mamba", "attention"]}
ATTENTION = {"layer_types": ["sliding_attention", "full_attention"]}
SPECIAL: dict[str, dict[str, Any]] = {
    "cohere_compass_text": ATTENTION,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 32},
    },
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8} | ATTENTION,
    "gemma4_assistant": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "opt": {"word_embed_proj_dim": 16},
    "prophetnet": {
        "num_hidden_layers": ...,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xlnet": {"max_position_embeddings": ..., "d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layer_types": ["linear_attention", "hybrid"] * 2}
    | {"num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}
"""What else a kind needs to be small, or to be built at all; ...: not this size."""


BUILD: Any = AutoModelForCausalLM.from_config


class CannotBuildError(Exception):
    """The configuration makes no tiny model."""


@dataclass(frozen=True)
class Finding:
    """What became of one architecture."""

    kind: str  # as configurations name it
    architecture: str
    head: str  # in words, "" where there is none
    error: float | None  # None: refused, or not built
    note: str  # why


def tiny(kind: str, seed: int = 0) -> Any:
    """Returns a random causal language model of a kind, with errors and states of a lively size.

    Raises:
        CannotBuildError: its configuration has no generic small form.
    """
    reason = ""
    for step in LADDER:
        try:
            model = _model(_config(CONFIG_MAPPING[kind], step | SPECIAL.get(kind, {})), seed)
            with torch.no_grad():
                model(input_ids=torch.arange(8)[None] + 5, use_cache=False)
            return model
        except CannotBuildError as error:
            reason = reason or str(error)
        except Exception as error:
            reason = reason or _line(error)
    raise CannotBuildError(reason)


def _config(kind: Any, extra: dict[str, Any]) -> Any:
    """Returns a small configuration of a class, its parts included."""
    default = kind()
    values = {
        name: value
        for name, value in (SIZES | extra).items()
        if value is not ... and hasattr(default, name) and _can_be_set(kind, name)
    }
    for name in getattr(kind, "sub_configs", {}):
        if getattr(default, name, None) is not None and name not in values:
            values[name] = _config(type(getattr(default, name)), extra).to_dict()
    return kind(**values)


def _can_be_set(kind: Any, name: str) -> bool:
    found = getattr(kind, name, None)
    return not isinstance(found, property) or found.fset is not None


def _model(config: Any, seed: int) -> Any:
    with torch.device("meta"):
        size = sum(p.numel() for p in BUILD(config).parameters())
    if size > LARGEST:
        raise CannotBuildError(f"{size:,} parameters with generic small sizes")
    torch.manual_seed(seed)
    model = BUILD(config, dtype=torch.float32).eval()
    liven(model)
    return model


def liven(model: nn.Module) -> None:
    """Makes the weights of a random model as large as a trained one's, and no bias nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))


def samples(vocabulary: int = VOCABULARY, seed: int = 0) -> list[Sample]:
    """Returns random samples of different lengths; one is plain text."""
    draws = np.random.default_rng(seed)
    made = []
    for number, (prompt, response) in enumerate(LENGTHS):
        ids = draws.integers(5, vocabulary, prompt + response).astype(np.int32)
        scored = np.arange(len(ids)) >= max(prompt, 1)
        made.append(Sample(str(number), str(number), {}, ids, scored, False, f"row {number}"))
    return made


def gradients(lm: LanguageModel, rows: list[Sample]) -> Tensor:
    """Returns the gradient of each sample's summed log-likelihood by the unembedding, [n, v * d].

    Autograd through the model's own forward pass, which knows nothing of factors or steps.
    """
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        with head_weight(lm.head.module, lm.head.vocabulary, lm.head.hidden) as weight:
            likelihood = torch.log_softmax(
                lm.model(input_ids=ids, use_cache=False).logits[0].double(), -1
            )
            places = np.flatnonzero(row.scored)
            total = likelihood[places - 1, ids[0, places]].sum()
            found.append(torch.autograd.grad(total, weight)[0].flatten().double())
    return torch.stack(found)


@contextmanager
def head_weight(module: Any, vocabulary: int, hidden: int) -> Iterator[Tensor]:
    """Gives a leaf that the model's logits depend on as they do on the head's effective weight.

    Of a plain linear layer a copy of its weight, so that a tied input embedding takes no part; of
    any other (an adapter's) a zero matrix that is added to whatever its weight comes to.
    """
    if type(module) is nn.Linear:
        kept = module.weight
        module.weight = nn.Parameter(kept.detach().clone())
        try:
            yield module.weight
        finally:
            module.weight = kept
        return
    change = torch.zeros(vocabulary, hidden, requires_grad=True)
    handle = module.register_forward_hook(lambda _, args, output: output + args[0] @ change.T)
    try:
        yield change
    finally:
        handle.remove()


def relative_error(lm: LanguageModel, rows: list[Sample]) -> float:
    """Returns how far the exact influences are from products of gradients, at most."""
    found = Encoder(lm).influence(rows, rows, [Raw()]).astype(np.float64)
    truth = gradients(lm, rows)
    return largest_error(found, (truth @ truth.T).numpy())


def largest_error(found: Any, truth: Any) -> float:
    """Returns the largest difference of two influence matrices, relative to the lengths."""
    lengths = np.sqrt(np.diag(truth))
    return float((np.abs(found - truth) / lengths[:, None] / lengths[None]).max())


def check(kind: str) -> Finding:
    """Returns how the closed form does for one architecture."""
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    try:
        lm = wrap_model(tiny(kind), None)
        error = relative_error(lm, samples(min(VOCABULARY, lm.head.vocabulary)))
    except CannotBuildError as reason:
        return Finding(kind, architecture, "not built", None, str(reason))
    except ForvalueError as refusal:
        return Finding(kind, architecture, "refused", None, str(refusal))
    note = "" if error < TOLERANCE else "WRONG"
    return Finding(kind, architecture, describe(lm), error, note)


def describe(lm: LanguageModel) -> str:
    """Returns the kind of a head in words."""
    head: Any = lm.head
    words = [] if head.scale == 1 else ["scaled"]
    words += [] if head.cap is None else ["soft-capped"]
    words += [] if getattr(head.module, "bias", None) is None else ["bias"]
    if head.hidden != lm.model.config.get_text_config().hidden_size:
        words.append("other width")
    return ", ".join(words) or "linear"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:100]


def markdown(findings: list[Finding]) -> str:
    """Returns the findings as a table of the kinds of heads."""
    lines = ["| head | architectures | largest error |", "|---|---|---|"]
    for head in sorted({finding.head for finding in findings}, key=_last):
        members = [finding for finding in findings if finding.head == head]
        errors = [finding.error for finding in members if finding.error is not None]
        names = ", ".join(finding.kind for finding in members)
        largest = f"{max(errors):.0e}" if errors else ""
        lines.append(f"| {head} ({len(members)}) | {names} | {largest} |")
    return "\n".join(lines)


def _last(head: str) -> tuple[bool, bool, str]:
    return head == "not built", head == "refused", head


def main() -> int:
    """Prints the table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="model types; default: all of them")
    parser.add_argument("--json", action="store_true", help="print a JSON line for each")
    parser.add_argument("--markdown", action="store_true", help="print a table of kinds of heads")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    findings = []
    for kind in arguments.kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        finding = check(kind)
        findings.append(finding)
        if arguments.json:
            print(json.dumps(asdict(finding)), flush=True)
        elif not arguments.markdown:
            error = "" if finding.error is None else f"{finding.error:.0e}"
            print(f"{kind:24} {error:6} {finding.head:20} {finding.note}", flush=True)
    if arguments.markdown:
        print(markdown(findings))
    return int(any(finding.note == "WRONG" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
