"""What the model answers by itself."""

from __future__ import annotations

import torch

from forvalue_index.forward.model import LanguageModel


def complete(lm: LanguageModel, prompt: str, max_new_tokens: int = 32) -> str:
    """Returns the model's most likely continuation of `prompt`, up to its end token."""
    encoded = lm.tokenizer([prompt], add_special_tokens=False, return_tensors="pt")
    ids = encoded["input_ids"].to(lm.device)
    with torch.no_grad():
        output = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=lm.tokenizer.eos_token_id,
        )
    return str(lm.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
