"""Whether this machine can add up errors by group as it makes them: see `kernels.py`."""

from __future__ import annotations

import logging
from functools import cache

import torch

from forvalue_index.features.tokens import Groups

log = logging.getLogger(__name__)


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels work on a device, and rightly; asked for the first time, it tries them.

    They want a GPU, Triton, which torch for CUDA brings, and a C compiler, which Triton wants.
    """
    if device.type != "cuda":
        return False
    try:
        from forvalue_index.forward import kernels  # which imports Triton

        draws = torch.Generator().manual_seed(0)
        logits = 4 * torch.randn(300, 70, generator=draws)
        targets = torch.randint(300, (70,), generator=draws)
        groups = Groups(torch.randint(20, (300,), generator=draws), 20)
        right = torch.zeros(70, 300).scatter_(1, targets[:, None], 1) - logits.softmax(0).T
        wanted = torch.zeros(70, 20).scatter_add_(1, groups.of.expand(70, -1), right)
        there = Groups(groups.of.to(device), groups.count)
        found = kernels.fold(logits.to(device), targets.to(device), there, 1.0)[0].cpu()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    except Exception as error:  # Triton, its compiler and CUDA raise any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("building with torch's own operations: Triton cannot be used: %s", reason)
        return False
    return True
