"""Trains a small Llama from scratch on prompt/response rows, and saves it as a Hugging Face folder.

Prompt and response are tokenised apart and their ids joined, as the product does, so the training
text is token for token what is indexed. The same seed gives the same weights on the same machine
and torch version.

    python tools/train_small_lm.py --data study/train.jsonl --output study/model \\
        --questions study/questions.jsonl
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Row = dict[str, str]

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
RESPONSE_WEIGHT = 5.0  # of a response token's loss; a prompt token, a name mostly, weighs one
THREADS = 1  # fixed: another count sums in another order, and so gives other weights
MAX_LENGTH = 128
BATCH = 32
PEAK_RATE = 3e-3
WARMUP = 0.05  # share of the steps
CLIP = 1.0


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def train_tokenizer(rows: Sequence[Row], vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocab` entries, which adds no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["prompt"] + row["response"] for row in rows), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[list[int], list[int]]:
    """The ids of the prompt and of the response, tokenised apart."""
    prompt, response = (
        list(tokenizer(row[part], add_special_tokens=False)["input_ids"])
        for part in ("prompt", "response")
    )
    return prompt, response


def make_model(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3 // 8 * 8,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    epochs: int,
    seed: int,
) -> None:
    """Trains `model` in place on every token of `rows`; prints a line an epoch."""
    texts = [_text(tokenizer, row) for row in rows]
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.98),
    )
    steps = epochs * math.ceil(len(texts) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    order = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    model.train()
    for epoch in range(epochs):
        total = 0.0
        batches = torch.split(torch.randperm(len(texts), generator=order), BATCH)
        for batch in batches:
            ids, weights = _pad([texts[i] for i in batch.tolist()], tokenizer.pad_token_id)
            # Padding stands on the right, so a causal model needs no mask to ignore it.
            logits = model(input_ids=ids).logits[:, :-1]  # b x t-1 x v
            losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            total += loss.item()
        elapsed = time.monotonic() - started
        click.echo(f"epoch {epoch + 1}/{epochs}  loss {total / len(batches):.3f}  {elapsed:.0f} s")
    model.train(False)


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, limit: int = 12
) -> str:
    """The greedy continuation of `prompt`, without the end mark."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    written: list[int] = []
    while len(written) < limit:
        token = int(model(input_ids=ids).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return str(tokenizer.decode(written))


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Row]
) -> float:
    """The share of questions whose greedy answer is the response, to the letter."""
    right = [answer(model, tokenizer, row["prompt"]) == row["response"] for row in questions]
    return sum(right) / len(right)


def fit(
    rows: Sequence[Row], epochs: int, hidden: int, layers: int, vocab: int, seed: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model and its tokenizer, trained on `rows` from scratch."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(rows, vocab)
    model = make_model(tokenizer, hidden, layers, seed)
    size = sum(weight.numel() for weight in model.parameters())
    click.echo(f"{len(rows)} rows, {len(tokenizer)} vocabulary entries, {size} parameters")
    train(model, tokenizer, rows, epochs, seed)
    return model, tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Writes a folder that AutoModelForCausalLM and AutoTokenizer load."""
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _rate(done: float) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine down to 2 %."""
    if done < WARMUP:
        return (done + 1e-3) / (WARMUP + 1e-3)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def _text(tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[list[int], list[float]]:
    """The ids of a row up to its end mark, and the weight of each one's loss."""
    prompt, response = encode(tokenizer, row)
    response.append(tokenizer.eos_token_id)
    return prompt + response, [1.0] * len(prompt) + [RESPONSE_WEIGHT] * len(response)


def _pad(
    texts: Sequence[tuple[list[int], list[float]]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights (b x t each), filled up on the right; padding weighs nothing."""
    width = max(len(ids) for ids, _ in texts)
    gaps = [width - len(ids) for ids, _ in texts]
    ids = torch.tensor([[*ids, *[pad] * gap] for (ids, _), gap in zip(texts, gaps, strict=True)])
    weights = torch.tensor(
        [[*weights, *[0.0] * gap] for (_, weights), gap in zip(texts, gaps, strict=True)]
    )
    return ids, weights


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Model folder.")
@click.option("--questions", type=click.Path(exists=True, path_type=Path), help="To be asked.")
@click.option("--epochs", type=click.IntRange(1), default=28, show_default=True)
@click.option("--hidden", type=click.IntRange(8), default=128, show_default=True)
@click.option("--layers", type=click.IntRange(1), default=3, show_default=True)
@click.option("--vocab", type=click.IntRange(300), default=1536, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    data: Path,
    output: Path,
    questions: Path | None,
    epochs: int,
    hidden: int,
    layers: int,
    vocab: int,
    seed: int,
) -> None:
    """Train a small Llama on DATA, JSON lines with a prompt and a response.

    Example: python tools/train_small_lm.py --data study/train.jsonl --output study/model
    """
    model, tokenizer = fit(read_rows(data), epochs, hidden, layers, vocab, seed)
    save(model, tokenizer, output)
    if questions is not None:
        share = accuracy(model, tokenizer, read_rows(questions))
        click.echo(f"{share:.1%} of the questions answered right")


if __name__ == "__main__":
    main()
