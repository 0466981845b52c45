"""A CUDA device that is not there: its tensors lie in the CPU's memory and meet no other ones.

What a GPU forbids is an error here as well: an operation on tensors of both devices, `numpy()` of
one that is on the GPU, and reading a copy that was not waited for (it holds NaN until then).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten: Any = torch.ops.aten
_new_tensor = torch.tensor  # which makes memory past the mode


class OnCuda(torch.Tensor):
    """A tensor that says of itself that it is on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    inner: torch.Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )
        made.inner = inner
        return made

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.inner.clone()

    def to(self, *args: Any, non_blocking: bool = False, **settings: Any) -> Any:
        if torch.device("cpu") not in [*map(_device, args), _device(settings.get("device"))]:
            return super().to(*args, **settings)
        if not non_blocking:
            return self.inner.to(*args, **settings).clone()
        result = torch.full_like(self.inner, torch.nan)
        _copies.append((result, self.inner.clone()))
        return result

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Makes tensors on the GPU where they are asked for."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, kwargs or {})


class _Event:
    """Ends the copies that were begun before it, once it is waited for."""

    def __init__(self) -> None:
        self._copies = _copies[:]

    def record_event(self) -> _Event:
        return self

    def synchronize(self) -> None:
        for target, source in self._copies:
            target.copy_(source)


_copies: list[tuple[torch.Tensor, torch.Tensor]] = []


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets torch work with the device, without a driver."""
    _copies.clear()
    with monkeypatch.context() as patch, _Mode():
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 36, 1 << 36))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        patch.setattr(torch.cuda, "current_stream", lambda device: _Event())
        patch.setattr(torch.cuda, "get_rng_state", lambda device: None)
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch, "tensor", _tensor)
        yield


def to_cuda(model: Any) -> Any:
    """Puts the weights of a model on the device."""
    moved: dict[Any, Any] = {}  # weights that are tied stay so
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is not None and value not in moved:
                    moved[value] = OnCuda(value.detach())
                    if isinstance(value, torch.nn.Parameter):
                        moved[value] = torch.nn.Parameter(moved[value], requires_grad=False)
                values[name] = moved.get(value)
    return model


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, OnCuda)]
    # Numbers may come from the CPU, and so may the places in a tensor.
    there = [x for x in tensors if not isinstance(x, OnCuda) and x.dim()]
    of_both = function in (aten._to_copy.default, aten.copy_.default) or (
        function in (aten.index.Tensor, aten.index_put_.default) and isinstance(args[0], OnCuda)
    )
    if here and there and not of_both:
        raise RuntimeError(f"{function} of tensors on cuda:0 and cpu")
    device = _device(kwargs.get("device"))
    if device is not None and device.type == "cuda":
        kwargs = kwargs | {"device": torch.device("cpu")}
    bare = tree_map(lambda x: x.inner if isinstance(x, OnCuda) else x, (args, kwargs))
    if function is aten.mm.dtype:
        assert bare[0][0].dtype == bare[0][1].dtype in (torch.bfloat16, torch.float16)
        result = bare[0][0].float() @ bare[0][1].float()
    else:
        result = function(*bare[0], **bare[1])
    if not (here if device is None else device.type == "cuda"):
        return result
    known = {id(tensor.inner): tensor for tensor in here}  # what was changed in place stays itself

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else OnCuda(value)

    return tree_map(wrapped, result)


def _tensor(data: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
    made = _new_tensor(data, **settings)
    return made if device is None else made.to(device)


def _device(value: Any) -> torch.device | None:
    return torch.device(value) if isinstance(value, str | torch.device) else None
