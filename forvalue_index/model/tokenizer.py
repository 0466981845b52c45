"""The tokenizer of a model and its limits, without the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from forvalue_index.config import ModelConfig
from forvalue_index.errors import ModelError
from forvalue_index.model.locate import Located, locate, may_be_id
from forvalue_index.model.vision import VisionProcessor

DEFAULT_MAX_LENGTH = 2048
OFFSET = {
    "camembert",
    "data2vec-text",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "markuplm",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
"""Models whose first position is the one after that of padding."""


@dataclass(frozen=True)
class TextSide:
    """What of a model decides how text becomes tokens."""

    tokenizer: Any
    max_positions: int | None  # the longest input it was made for; None: no limit known
    vocabulary: int | None  # tokens that it has a row for; None: not known
    classes: dict[str, int] | None  # of a sequence classifier, by name
    vision: VisionProcessor | None  # of a model that reads images


def load_text_side(config: ModelConfig) -> TextSide:
    """Returns the tokenizer of a model and its limits; no weights are read.

    Raises:
        ModelError: there is no such model, or it has no tokenizer that can be read.
    """
    place = locate(config)
    config = place.config
    try:
        settings = AutoConfig.from_pretrained(config.name, **place.settings)
        task = task_of(config, settings)
        tokenizer, processor = load_tokenizer(place, settings, task)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(cannot_load(config.name, error)) from error
    vocabulary = getattr(settings.get_text_config(), "vocab_size", None)
    if config.adapters:  # which may have more
        vocabulary = None
    classes = None
    if task == "classification":
        classes = {name: number for number, name in settings.id2label.items()}
    vision = None if processor is None else VisionProcessor(processor, settings)
    return TextSide(tokenizer, max_positions(settings), vocabulary, classes, vision)


def load_tokenizer(place: Located, settings: Any, task: str) -> tuple[Any, Any]:
    """Returns a model's tokenizer, and its processor if it is read with images.

    An adapter's own tokenizer comes before that of its base.
    """
    if task != "image-text":
        tokenizer = AutoTokenizer.from_pretrained(place.tokenizer, **place.tokenizer_settings)
        if "gguf_file" in place.tokenizer_settings:
            _mend_end(tokenizer, settings)
        return tokenizer, None
    loader: Any = AutoProcessor
    processor = loader.from_pretrained(place.config.name, **place.settings)
    tokenizer = processor.tokenizer
    tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
    return tokenizer, processor


def _mend_end(tokenizer: Any, settings: Any) -> None:
    """Gives the tokenizer of a GGUF file the end token that the file names.

    transformers 5.17 takes the token of the beginning for it.
    """
    end = settings.get_text_config().eos_token_id
    if isinstance(end, int) and tokenizer.eos_token_id == tokenizer.bos_token_id != end:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def task_of(config: ModelConfig, settings: Any) -> str:
    """Returns what a model is read as: what was asked for, or what its checkpoint says.

    Raises:
        ModelError: it is an encoder-decoder.
    """
    names = settings.architectures or [""]
    task = config.task
    if task == "auto":
        task = "causal"
        if names[0].endswith("ForSequenceClassification"):
            task = "classification"
        elif names[0] in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
            task = "image-text"
    if task == "causal" and settings.is_encoder_decoder:
        raise ModelError(
            f"{config.name} is an encoder-decoder ({names[0] or settings.model_type}): its "
            "unembedding does not predict the tokens that it reads, so there is no closed form "
            "for it; use a decoder"
        )
    return task


def max_positions(config: Any) -> int | None:
    """Returns the longest input that a model was made for, in tokens."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            # Some count positions from the id after that of padding.
            return value - text.pad_token_id - 1 if text.model_type in OFFSET else value
    return None


def max_length(positions: int | None, wanted: int | None) -> int:
    """Returns the length that samples are cut to: `wanted`, or the model's own limit.

    Raises:
        ModelError: more is wanted than the model has positions for.
    """
    if wanted is None:
        return min(positions or DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH)
    if positions is not None and wanted > positions:
        raise ModelError(
            f"max length {wanted} is over the model's {positions} positions: "
            f"use --max-length {positions} or less"
        )
    return wanted


PICKLED = (
    "its weights are damaged, or pickled with more than tensors in them, which is never run: get "
    "it as safetensors"
)
"""What is wrong with weights that torch refuses to unpickle."""


def cannot_load(name: str, error: Exception) -> str:
    """Returns the message of an error that kept a model from being loaded."""
    said = first_line(error).removesuffix(".")
    if "trust_remote_code" in str(error):
        return f"cannot load model {name}: {said}; if you trust it, give --trust-remote-code"
    if "ignore_mismatched_sizes" in said:  # which nobody here can set
        said = "its weights have other shapes than its config.json says"
    if not Path(name).exists():
        if not may_be_id(name):
            said = "there is no such folder"
        else:
            said = f"there is no such folder here, and on the hub: {said}"
    where = "give the folder of a whole model, or its id on the hub"
    return f"cannot load model {name}: {said}; {where}"


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its kind when it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else f"it is damaged ({type(error).__name__})"
