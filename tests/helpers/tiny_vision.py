"""Tiny random vision-language models with processors of their own; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    SmolVLMConfig,
)

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from helpers.models import SIZES, tiny_tokenizer

FAMILIES = ("llava", "qwen2-vl", "idefics3", "smolvlm", "gemma3")
TORCHVISION = importlib.util.find_spec("torchvision") is not None
TEXT: dict[str, Any] = SIZES | {"max_position_embeddings": 512, "vocab_size": 192}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}

PARTS = (
    "{% for message in messages %}<s>{{ message['role'] }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}@"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
"""A chat template that knows contents as parts only, as those of most such models do."""


def image_processor(name: str, **settings: Any) -> Any:
    """The image processor of a family: with torchvision where there is one, else with Pillow."""
    try:
        return getattr(transformers, name if TORCHVISION else f"{name}Pil")(**settings)
    except ImportError:
        pytest.skip(f"in this version of transformers, {name} needs torchvision")


def load(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A random model of a family and its processor."""
    config, processor = BUILDERS[family]()
    processor.tokenizer.chat_template = processor.chat_template
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed_tokens" not in name:
                parameter.mul_(4)
            if not parameter.any() and parameter.dim() > 1:  # Gemma's projection of images
                parameter.normal_()
    return model.eval(), processor


def save(path: Path, family: str) -> Path:
    """Writes a model and its processor, as a user has them."""
    model, processor = load(family)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of random blocks of colour."""
    draws = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, 4, 3), generator=draws, dtype=torch.uint8)
    return Image.fromarray(blocks.numpy()).resize(size, Image.Resampling.NEAREST)


def png(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """The same, as the bytes of a file."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def _tokenizer(*names: str, **named: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*names]})
    for role, token in named.items():
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        setattr(tokenizer, role, token)
        setattr(tokenizer, f"{role}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def _template(image: str) -> str:
    return PARTS.replace("@", image)


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<image>")
    images = image_processor(
        "CLIPImageProcessor",
        size={"height": 16, "width": 16},
        crop_size={"height": 16, "width": 16},
        do_center_crop=False,
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>\n"),
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=16, patch_size=8, projection_dim=16),
        text_config=LlamaConfig(**TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    return config, processor


class _WithoutVideos(Qwen2VLProcessor):
    """Its processor of videos takes torchvision, even where there is nothing for it to do."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name != "video_processor":
            return super().check_argument_for_proper_class(name, argument)
        return None


def _qwen2_vl() -> tuple[Any, Any]:
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(*names)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    images = image_processor(
        "Qwen2VLImageProcessor",
        patch_size=4,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 64, "longest_edge": 1024},
    )
    template = _template("<|vision_start|><|image_pad|><|vision_end|>")
    processor = _WithoutVideos(images, tokenizer, chat_template=template)
    text = {name: value for name, value in TEXT.items() if name != "hidden_size"}
    config = Qwen2VLConfig(
        text_config=text
        | {
            "hidden_size": 24,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 2, 2],
            },
        },
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 24,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return config, processor


def _idefics3(kind: type = Idefics3Config) -> tuple[Any, Any]:
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    names = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    tokenizer = _tokenizer(*names, *rows)
    images = image_processor(
        "Idefics3ImageProcessor",
        size={"longest_edge": 32},
        max_image_size={"longest_edge": 16},
    )
    processor = Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=_template("<image>")
    )
    config = kind(
        vision_config=TOWER | {"image_size": 16, "patch_size": 4},
        text_config=LlamaConfig(**TEXT),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return config, processor


def _gemma3() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    images = image_processor("Gemma3ImageProcessor", size={"height": 16, "width": 16})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=_template("<start_of_image>"), image_seq_length=4
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT, head_dim=12, sliding_window=16),
        vision_config=TOWER | {"image_size": 16, "patch_size": 4, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return config, processor


BUILDERS = {
    "llava": _llava,
    "qwen2-vl": _qwen2_vl,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3(SmolVLMConfig),
    "gemma3": _gemma3,
}


def index_of(directory: Path, data: Path, model: Path, **settings: Any) -> InfluenceIndex:
    format = FormatConfig(image_field="image", key_field="id")
    vector = VectorConfig(dim=32, sketch_dim=512)
    index, _ = InfluenceIndex.build(
        directory, data, str(model), format=format, vector=vector, **settings
    )
    return index
