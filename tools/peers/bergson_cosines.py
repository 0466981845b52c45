"""bergson: writes the cosines of the gradients that it has stored, float32 [q, n].

python -m peers.bergson_cosines TRAIN QUERIES OUT
"""

from __future__ import annotations

import sys

import numpy as np
from bergson.data import load_gradients
from numpy.typing import NDArray


def unit(path: str) -> NDArray[np.float32]:
    """Returns the gradients of a folder, each of length 1: [n, D]."""
    stored = load_gradients(path)
    values: NDArray[np.float32] = np.array(stored, dtype=np.float32).reshape(len(stored), -1)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)
    return values


def main() -> None:
    """Writes the scores."""
    train, queries, out = sys.argv[1:]
    np.save(out, unit(queries) @ unit(train).T)


if __name__ == "__main__":
    main()
