"""The settings of a model that change its forward pass, beside its weights.

Names that a library gives to settings are known here by their parts, so that a new architecture is
covered too; what a version of transformers adds or renames is absent from the other's settings.
"""

from __future__ import annotations

import re
from typing import Any

_MATTERS = re.compile(
    r"^(?!_).*(rope|rotary|alibi|heads?$|head_dim|window|eps|hidden_act|activation|norm|scal|"
    r"multiplier|softcap|experts_per_tok|topk)"
)


def forward_settings(config: Any) -> dict[str, Any]:
    """Returns dotted name -> value for the settings that change what a model computes.

    Args:
        config: a configuration of transformers.
    """
    found: dict[str, Any] = {}
    for name, value in config.get_text_config().to_dict().items():
        if _MATTERS.match(name):
            found |= _leaves(name, value)
    return dict(sorted(found.items()))


def _leaves(name: str, value: Any) -> dict[str, Any]:
    """Returns the values in a setting that JSON can keep, by dotted name."""
    if isinstance(value, dict):
        parts = [_leaves(f"{name}.{key}", part) for key, part in value.items()]
        return {dotted: leaf for part in parts for dotted, leaf in part.items()}
    if isinstance(value, list | tuple):
        return {name: list(value)} if all(isinstance(x, str | int | float) for x in value) else {}
    return {name: value} if isinstance(value, str | int | float) else {}
