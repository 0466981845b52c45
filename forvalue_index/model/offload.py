"""Models that accelerate has spread over several devices, memory and disk.

Its hooks bring inputs and weights together, layer by layer. Code that goes past the hooks must find
the weights itself: the unembedding, which is applied a chunk at a time, and the weights' hash.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from forvalue_index.errors import DependencyError


def require_accelerate() -> None:
    """Raises DependencyError if accelerate is missing."""
    if find_spec("accelerate") is None:
        raise DependencyError(
            'a model on several devices needs accelerate: pip install "forvalue-index[accelerate]"'
        )


def input_device(model: nn.Module) -> torch.device:
    """Returns the device that a model takes its inputs on: that of the first weight in memory."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def stay(module: nn.Module) -> None:
    """Keeps the weights of an offloaded layer on the device where it works, from now on."""
    if not any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    hook: Any = module._hf_hook
    device = torch.device(hook.execution_device)
    values = {name: kept(module, name) for name, _ in module.named_parameters(recurse=False)}
    remove_hook_from_module(module)
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value.to(device), requires_grad=False))
    add_hook_to_module(module, AlignDevicesHook(device))


def kept(module: nn.Module, name: str) -> Tensor:
    """Returns a parameter or buffer of a module, from where it is kept."""
    *folders, leaf = name.split(".")
    owner = module.get_submodule(".".join(folders))
    tensor: Tensor = getattr(owner, leaf).detach()
    if tensor.is_meta:
        hook: Any = owner._hf_hook
        value: Tensor = hook.weights_map[leaf]
        return value
    return tensor


def own_names(model: Any) -> list[str]:
    """Returns the names of parameters and buffers, of those that are tied the first alone.

    An offloaded weight is a tensor of its own, so ties are read from the model's settings.
    """
    names, seen = [], set()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        root = tied.get(name, name)
        if root not in seen:
            names.append(name)
        seen.add(root)
    return names
