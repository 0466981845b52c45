"""A model that somebody else goes on using: read in evaluation mode, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ORIGINAL = "_original_forward"
"""Where accelerate keeps a model's own forward pass, after it put mixed precision around it."""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Has a model without dropout and in its own precision for a `with` block.

    Afterwards each of its modules is in the mode that it was in before, and mixed precision that a
    trainer put around the model is there again. What wants gradients is never changed.
    """
    training = [module for module in model.modules() if module.training]
    around = vars(model).get("forward") if ORIGINAL in vars(model) else None
    for module in training:
        module.training = False
    if around is not None:
        model.forward = vars(model)[ORIGINAL]
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if around is not None:
            model.forward = around
