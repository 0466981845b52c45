"""Models that read images, and rows that do not fit them."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from error_cases.case import Case, python, row
from error_cases.damage import model_with
from error_cases.models import SIZES, pair
from error_cases.rows import DOT, HI, PAIR, YO

from forvalue_index import FormatConfig

NO = {"role": "assistant", "content": "No"}
PARTS = (
    "{% for m in messages %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
)
LLAVA = "the model is a LLaVA, whose tokenizer writes <image> for an image"
PICTURE = {"image": {"bytes": DOT}}
PART = {"type": "image", "image": {"bytes": DOT}}


def llava(**settings: Any) -> dict[str, Any]:
    """Returns a small random model with its processor and tokenizer."""
    import transformers

    t: Any = transformers

    tokenizer = pair()["tokenizer"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 16, "width": 16}
    kind = "CLIPImageProcessor" + ("" if importlib.util.find_spec("torchvision") else "Pil")
    images = getattr(t, kind)(size=size, crop_size=size, do_center_crop=False)
    processor = t.LlavaProcessor(
        images, tokenizer, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, **{"patch_size": 8, "chat_template": PARTS} | settings,
    )  # fmt: skip
    tower = {name: SIZES[name] for name in SIZES if name[:3] in ("hid", "int", "num")}
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**tower, image_size=16, patch_size=8, projection_dim=8),
        text_config=t.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer)}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = t.LlavaForConditionalGeneration(config)
    return {"model": model, "tokenizer": tokenizer, "processor": processor}


def _llava(folder: Path) -> None:
    """Writes the model over `model`."""
    model_with()(folder)
    with contextlib.chdir(folder):
        made = llava()
    made["model"].save_pretrained(folder / "model")
    made["processor"].save_pretrained(folder / "model")


def _seen(options: str, *rows: Any) -> Case:
    return row(*rows, options=options, before=_llava, told=LLAVA)


def _picky() -> dict[str, Any]:
    """Returns a model whose processor refuses small images, and such an image."""
    from PIL import Image

    made = llava()
    images = made["processor"].image_processor
    plain = images.preprocess

    def preprocess(given: Any, *args: Any, **settings: Any) -> Any:
        first = given[0][0] if isinstance(given[0], list) else given[0]
        if first.size == (1, 1):
            raise ValueError("the image is too small")
        return plain(given, *args, **settings)

    images.preprocess = preprocess
    return made | {"small": Image.new("RGB", (1, 1)), "IMAGE": FormatConfig(image_field="image")}


WRAP = "wrap_model(model, tokenizer, processor=processor)"
FIELDS = "--image-field image --messages-field messages"

CASES = [
    _seen("--image-field image --max-length 4", PAIR | PICTURE),
    _seen("--image-field image", {"prompt": "<image> and <image>", "response": "b"} | PICTURE),
    _seen(FIELDS, {"messages": [HI | {"content": [PART, {"type": "image"}]}, YO]}),
    _seen("--messages-field chosen --rejected-field rejected",
          {"chosen": [HI | {"content": [PART]}, YO], "rejected": [HI, NO]}),
    python(WRAP, known=lambda: llava(chat_template="{% if %}"), told="its template is {% if %}",
           hide=r"(?<=used: ).*(?=; corr)"),
    python(WRAP, known=llava, lacking="PIL"),
    python("wrap_model(model, tokenizer, processor=tokenizer)", known=pair),
    python(WRAP, known=lambda: llava(patch_size=None), told="processor has no patch_size",
           hide=r"(?<=text \().*?(?=\), which)"),
    python(f"InfluenceIndex.build('new', [row | {{'image': small}}], {WRAP}, format=IMAGE)",
           known=_picky, told="processor raises an error for `small`, which is of 1 x 1 pixels"),
]  # fmt: skip
