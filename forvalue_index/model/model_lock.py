"""One thread at a time uses the models of a process, with float32 products in full precision.

A forward pass hooks into its model and may switch its adapter, and loading one changes settings of
torch, which would disturb a pass of another thread. Searches and tokenizers do not need the lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

_LOCK = RLock()  # one for all models: loading changes torch's settings for all of them


@contextmanager
def model_lock() -> Iterator[None]:
    """Holds the lock for a `with` block; a thread that holds it may take it again."""
    with _LOCK, full_precision():
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Keeps torch from rounding float32 products (TF32, bfloat16) in a `with` block.

    A process may allow it, by torch.set_float32_matmul_precision or the environment variable
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, and cuDNN rounds convolutions by default. What was allowed is
    allowed again afterwards.
    """
    backends: Any = torch.backends
    # From torch 2.9 on each operator has a setting of its own, beside the two that torch always
    # had. Torch refuses to read the latter where the former contradict them, so both are set.
    operators: list[Any] = [
        operator
        for backend in (backends.cuda, backends.cudnn, backends.mkldnn)
        for name in ("matmul", "conv", "rnn")
        if hasattr(operator := getattr(backend, name, None), "fp32_precision")
    ]
    before = [operator.fp32_precision for operator in operators]
    products, convolutions = _products(), _convolutions()
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    for operator in operators:
        operator.fp32_precision = "ieee"
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


def _products() -> str | None:
    """Returns what matrix products may be rounded to; None: each operator says so itself."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _convolutions() -> bool | None:
    """Returns whether cuDNN may round; None: each operator says so itself."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None
