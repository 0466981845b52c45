"""The scale of stored vectors, from what a vectoriser learned, without the libraries of models."""

from __future__ import annotations

from safetensors.numpy import load


def scale_of(data: bytes) -> float:
    """Returns `Vectoriser.scale` of what `Vectoriser.to_bytes` wrote.

    Raises:
        SafetensorError: the data are damaged.
    """
    return float(load(data)["scale"])
