"""Inner products of prediction errors, which are most of the cost of an exact influence."""

from __future__ import annotations

import torch
from torch import Tensor

REST = 2.0**-7
"""Of an error's length: what its bfloat16 part has, at most. Three roundings of 2^-9 make its
products with another error wrong by less than 5e-5 of the two lengths; a hundredth of that is
usual."""

SHARES = (32, 16, 8, 4)
"""The vocabulary is divided by one of these: so many entries are multiplied in float32."""

SMALLEST = 128, 8192  # tokens and vocabulary: below, one product in float32 is as fast


class ErrorProducts:
    """Inner products with some errors, which are prepared once for many others.

    A softmax is small nearly everywhere. On a processor that multiplies bfloat16 faster than
    float32, the entries of the vocabulary that carry the errors are multiplied in float32, the
    rest in bfloat16. Elsewhere all are multiplied in float32.
    """

    def __init__(self, errors: Tensor, *, split: bool | None = None) -> None:
        """Prepares errors [n, v]; `split`: whether bfloat16 is used; default: where it is faster.

        Memory: half as much again, if it is used.
        """
        self._errors = errors
        self._columns: Tensor | None = None
        n, v = errors.shape
        if split is None:
            split = fast_bfloat16(errors) and n >= SMALLEST[0] and v >= SMALLEST[1]
        if split:
            self._split(errors)

    def __call__(self, others: Tensor) -> Tensor:
        """Returns the inner products with other errors [m, v], [n, m] float32."""
        if self._columns is None:
            return self._errors @ others.T
        products = self._errors @ others.index_select(1, self._columns).T
        return products.add_((self._rest @ others.bfloat16().T).float())

    @property
    def split(self) -> bool:
        """Whether a part is in bfloat16."""
        return self._columns is not None

    def _split(self, errors: Tensor) -> None:
        """Keeps the largest entries in float32 and the others in bfloat16, if these are short."""
        lengths = torch.linalg.vector_norm(errors, dim=1)  # [n]
        peaks = torch.zeros_like(errors[0])  # [v], relative to the error's length
        for part, own in zip(torch.split(errors, 64), torch.split(lengths, 64), strict=True):
            torch.maximum(peaks, (part / own.clamp_min(1e-30)[:, None]).abs().amax(0), out=peaks)
        order = peaks.argsort(descending=True)
        for share in SHARES:
            columns = order[: errors.shape[1] // share].sort().values
            rest = errors.bfloat16()
            rest[:, columns] = 0
            length = torch.linalg.vector_norm(rest, dim=1, dtype=torch.float32)
            if bool((length <= REST * lengths).all()):
                self._errors, self._columns = errors.index_select(1, columns), columns
                self._rest = rest
                return


def fast_bfloat16(tensor: Tensor) -> bool:
    """Returns whether products in bfloat16 are faster than in float32 where a tensor is."""
    cpu = torch.cpu
    return tensor.device.type == "cpu" and (
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )
