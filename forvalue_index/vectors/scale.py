"""Figures of what a vectoriser learned, without the libraries of models."""

from __future__ import annotations

from safetensors.numpy import load

STATES = "states."
"""How the names of the tensors begin that make states of mean states."""


def scale_of(data: bytes) -> float:
    """Returns `Vectoriser.scale` of what `Vectoriser.to_bytes` wrote.

    Raises:
        SafetensorError: the data are damaged.
    """
    return float(load(data)["scale"])


def state_dim_of(data: bytes) -> int:
    """Returns how many numbers a state has of what `Vectoriser.to_bytes` wrote; 0: there are none.

    Raises:
        SafetensorError: the data are damaged.
    """
    found = load(data).get(f"{STATES}directions")
    return 0 if found is None else int(found.shape[1])
