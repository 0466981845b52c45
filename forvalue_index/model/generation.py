"""What the model answers by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor
from transformers import TextStreamer

from forvalue_index.errors import InputError
from forvalue_index.model.evaluation import evaluating
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.model.model_lock import model_lock
from forvalue_index.records import Sample


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the model's own settings have the rest."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0: always the most likely token
    top_p: float = 1.0  # draw from the most likely tokens that have this probability together
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}: use 1 or more")
        if not 0 <= self.temperature < inf:
            raise InputError(f"temperature is {self.temperature}: use a number, 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: use more than 0 and at most 1")


class _Stream(TextStreamer):
    """Hands on the text of generated tokens, word by word."""

    def __init__(self, lm: LanguageModel, report: Callable[[str], None]) -> None:
        super().__init__(lm.tokenizer, skip_special_tokens=True)
        self._report = report

    def put(self, value: Tensor) -> None:
        """Takes the prompt, then each token; the first is decoded behind the prompt's last.

        Decoders drop the space at the start of a text.
        """
        if not self.next_tokens_are_prompt:
            super().put(value)  # type: ignore[no-untyped-call]
            return
        self.next_tokens_are_prompt = False
        self.token_cache = value.reshape(-1)[-1:].tolist()
        self.print_len = len(self.tokenizer.decode(self.token_cache, **self.decode_kwargs))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands on what will not change any more."""
        if text:
            self._report(text)


def generate(
    lm: LanguageModel,
    prompt: Sample,
    sampling: Sampling,
    report: Callable[[str], None] | None = None,
) -> list[int]:
    """Returns the ids that the model adds to a prompt, with the end token if it came.

    The random state of torch is left as it was.

    Args:
        lm: the model.
        prompt: what it reads; nothing of it is scored.
        sampling: how tokens are chosen. Fewer are made where the model's positions end.
        report: called with each word as soon as it is complete.

    Raises:
        InputError: the prompt is empty, or leaves no room for an answer.
    """
    length = len(prompt.input_ids)
    if length == 0:
        raise InputError("the prompt has no tokens: the model needs at least one to continue")
    room = sampling.max_new_tokens
    if lm.max_positions is not None:
        room = min(room, lm.max_positions - length)
    if room < 1:
        raise InputError(
            f"the prompt has {length} tokens, and the model reads at most {lm.max_positions}: "
            "shorten it"
        )
    inputs = lm.collate([prompt], [0]).to(lm.device).inputs
    draws = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    ends = sorted(end_tokens(lm))
    # A seed is for all of them, wherever the model is.
    several = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    seeded = range(torch.cuda.device_count()) if several else []
    with model_lock(), evaluating(lm.model), torch.no_grad(), torch.random.fork_rng(seeded):
        lm.activate(len(lm.checkpoints) - 1)  # what training ended with
        torch.manual_seed(sampling.seed)
        output = lm.model.generate(
            **{"attention_mask": torch.ones_like(inputs["input_ids"])} | inputs,
            max_new_tokens=room,
            num_beams=1,
            do_sample=sampling.temperature > 0,
            **(draws if sampling.temperature > 0 else {}),
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,  # one sample is never padded
            streamer=None if report is None else _Stream(lm, report),
        )
    ids: list[int] = output[0, length:].tolist()
    return ids


def complete(lm: LanguageModel, prompt: str, max_new_tokens: int = 32) -> str:
    """Returns the model's most likely continuation of `prompt`, up to its end token."""
    ids = np.array(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int32)
    sample = Sample("", "", {}, ids, np.zeros(len(ids), np.bool_), False, "the prompt")
    return text_of(lm, sample, generate(lm, sample, Sampling(max_new_tokens)))


def text_of(lm: LanguageModel, prompt: Sample, made: list[int]) -> str:
    """Returns the text of what was generated, as it follows the prompt."""
    last = prompt.input_ids[-1:].tolist()
    before, whole = (
        str(lm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in (last, last + made)
    )
    return whole[len(before) :]


def end_tokens(lm: LanguageModel) -> set[int]:
    """Returns the ids that end an answer: the tokenizer's, and those of the model's settings."""
    ends = lm.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return {int(id) for id in (*listed, lm.tokenizer.eos_token_id) if id is not None}
