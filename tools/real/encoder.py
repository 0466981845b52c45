"""A sentence encoder: the mean of its last states, of length 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

BATCH = 32
LONGEST = 256  # tokens of a text


class Encoder:
    """A model that `transformers` reads, such as sentence-transformers/all-MiniLM-L6-v2."""

    def __init__(self, name: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        self._model = AutoModel.from_pretrained(name).eval()

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns a vector for each text, [n, d]."""
        result = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            states = self._model(**batch).last_hidden_state  # [b, t, d]
            mask = batch["attention_mask"][:, :, None]
            means = (states * mask).sum(1) / mask.sum(1)
            result.append(torch.nn.functional.normalize(means, dim=-1).float().numpy())
        return np.concatenate(result)
