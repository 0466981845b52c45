"""What a model's processor makes of pictures: tokens in the text, tensors beside it.

Processors differ in how they write a picture into a text and in which tensors they give. This is
measured: a blank picture is put through, and the text that reaches the tokenizer and the tensors
that come back decide. Each sample is put through alone, and only samples with tensors of the same
shapes share a batch, so that no picture is padded to the size of another sample's.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from forvalue_index.errors import DependencyError, ModelError
from forvalue_index.model.batching import Batch, collate
from forvalue_index.records import Sample
from forvalue_index.rendering import RenderError, TemplateReadError, render_chat

if TYPE_CHECKING:
    from PIL.Image import Image

PROBE = (64, 48)
"""Width and height of the picture that a processor is tried with."""

SETTINGS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_image_splitting",
    "do_normalize",
    "do_pad",
    "do_pan_and_scan",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "max_image_size",
    "max_pixels",
    "merge_size",
    "min_pixels",
    "patch_size",
    "resample",
    "rescale_factor",
    "size",
    "temporal_patch_size",
)
"""What of an image processor decides its tensors, whichever library it calculates with."""


REMEMBERED = 32 << 20
"""Bytes of what is remembered of pictures' sizes; a size takes from 100 bytes to some 10 KB."""

Sizes: TypeAlias = tuple[tuple[int, int], ...]
"""Width and height of each picture of a sample."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is the same for all pictures of some sizes."""

    text: str  # what the processor makes of them in the text
    kind: Hashable  # the shapes of the tensors that it makes of them, but for how many


class _Shapes:
    """The shapes of the sizes that were asked for last; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shapes: OrderedDict[Sizes, _Shape] = OrderedDict()
        self._bytes = 0

    def get(self, sizes: Sizes) -> _Shape | None:
        """Returns the shape of pictures of some sizes, if it is remembered."""
        with self._lock:
            if sizes in self._shapes:
                self._shapes.move_to_end(sizes)
            return self._shapes.get(sizes)

    def put(self, sizes: Sizes, shape: _Shape) -> None:
        """Remembers a shape, and forgets those that were not asked for for longest."""
        with self._lock:
            if sizes not in self._shapes:  # another thread may have put it meanwhile
                self._shapes[sizes] = shape
                self._bytes += _n_bytes(shape)
            while len(self._shapes) > 1 and self._bytes > REMEMBERED:
                self._bytes -= _n_bytes(self._shapes.popitem(last=False)[1])


def _n_bytes(shape: _Shape) -> int:
    return 512 + sys.getsizeof(shape.text)


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a processor made of pictures."""

    text: str  # what it gave to the tokenizer
    features: dict[str, Tensor]  # what the model gets of the pictures
    per_token: frozenset[str]  # names of the inputs that say of each token what it is


class VisionProcessor:
    """Reads pictures with the processor of one model."""

    def __init__(self, processor: Any, config: Any) -> None:
        """Takes a processor and the model's configuration.

        Raises:
            ModelError: the processor does not write pictures into the text.
        """
        self.processor = processor
        self._token = _image_token(config)
        self._shapes = _Shapes()
        self.placeholder = self._placeholder()
        self.insertion = self._insertion()

    def __deepcopy__(self, memo: dict[int, Any]) -> VisionProcessor:
        """Returns itself: a copy of a model, with other weights, reads pictures alike."""
        return self

    def expansion(self, size: tuple[int, int]) -> str:
        """Returns the text of the tokens that a picture of a width and height takes."""
        return self._shape((size,)).text

    def special_ids(self, size: tuple[int, int]) -> frozenset[int]:
        """Returns the ids that stand for a picture of a size, and those that frame it."""
        tokenizer = self.processor.tokenizer
        text = self.insertion + self.expansion(size)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
        return frozenset(added & set(ids)) | {self._token}

    def kind(self, sample: Sample) -> Hashable:
        """Returns what samples must have in common to share a batch."""
        if not sample.images:
            return None
        return self._shape(tuple(picture.size for picture in sample.images)).kind

    def collate(
        self, samples: Sequence[Sample], positions: list[int], *, dtype: torch.dtype
    ) -> Batch:
        """Returns the batch of the samples at `positions`, which are of one kind.

        Raises:
            RowError: a picture is gone, was changed or cannot be decoded.
        """
        batch = collate(samples, positions)
        members = [samples[i] for i in positions for _ in samples[i].texts]
        assert len({self.kind(sample) for sample in members}) == 1
        if not members[0].images:
            return batch
        trials = [
            self._processed(
                [picture.pixels(sample.source) for picture in sample.images], self.placeholder
            )
            for sample in members
        ]
        for name in trials[0].features:
            value = torch.cat([trial.features[name] for trial in trials])
            batch.inputs[name] = value.to(dtype) if value.is_floating_point() else value
        for name in trials[0].per_token:
            batch.inputs[name] = (batch.inputs["input_ids"] == self._token).long()
        return batch

    def fingerprint(self) -> str:
        """Returns a hash of what decides the tensors of a picture."""
        values = self.processor.image_processor.to_dict()
        text = json.dumps([_plain(values.get(name)) for name in SETTINGS], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _shape(self, sizes: Sizes) -> _Shape:
        """Returns what blank pictures of some sizes become."""
        shape = self._shapes.get(sizes)
        if shape is None:
            trial = self._processed([_blank(size) for size in sizes], self.placeholder)
            shapes = sorted((name, *value.shape[1:]) for name, value in trial.features.items())
            shape = _Shape(trial.text, tuple(shapes))
            self._shapes.put(sizes, shape)
        return shape

    def _processed(self, images: list[Image], placeholder: str) -> _Trial:
        processor = copy.copy(self.processor)
        processor.tokenizer = _Listener(self.processor.tokenizer)
        values = processor(
            images=images,
            text=[placeholder * len(images)],
            return_tensors="pt",
            add_special_tokens=False,
        )
        ids = values.pop("input_ids")
        values.pop("attention_mask", None)
        listed = {
            name
            for name, value in values.items()
            if value.shape == ids.shape and name.endswith("token_type_ids")
        }
        features = {name: value for name, value in values.items() if name not in listed}
        return _Trial(processor.tokenizer.text, features, frozenset(listed))

    def _placeholder(self) -> str:
        """Returns what stands for one picture: the token that the processor makes more of."""
        tokenizer = self.processor.tokenizer
        candidates = [
            getattr(self.processor, "image_token", None),
            getattr(self.processor, "boi_token", None),
            tokenizer.convert_ids_to_tokens(self._token),
        ]
        reason = "nothing in the text becomes a picture's tokens"
        for candidate in candidates:
            if candidate is None:
                continue
            try:
                trial = self._processed([_blank(PROBE)], str(candidate))
            except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0]
                continue
            if trial.text != str(candidate):
                return str(candidate)
        raise ModelError(
            f"{type(self.processor).__name__} does not write pictures into the text ({reason}), "
            "which is the only supported way to read them"
        )

    def _insertion(self) -> str:
        """Returns what the chat template writes for a picture, or the bare placeholder."""
        template = getattr(self.processor, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            return self.placeholder
        text: dict[str, Any] = {"type": "text", "text": "Q"}
        names = self.processor.tokenizer.special_tokens_map
        try:
            without, written = (
                render_chat(
                    str(template), conversations=[[{"role": "user", "content": parts}]], **names
                )[0]
                for parts in ([text], [{"type": "image"}, text])
            )
        except (RenderError, TemplateReadError) as error:
            raise ModelError(
                f"the model's chat template cannot be used: {error}; correct it"
            ) from None
        # They part where the picture begins; what follows it is the same in both.
        start = next(
            (i for i, (a, b) in enumerate(zip(without, written, strict=False)) if a != b), 0
        )
        found: str = written[start : start + len(written) - len(without)]
        return found if found.count(self.placeholder) == 1 else self.placeholder


class _Listener:
    """A tokenizer that remembers the text that a processor gave it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.text = ""

    def __call__(self, text: Any, **settings: Any) -> Any:
        self.text = text if isinstance(text, str) else text[0]
        return self._tokenizer(text, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _image_token(config: Any) -> int:
    """Returns the id that the model puts a picture's states in the place of."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise ModelError(
        f"a model of type {config.model_type!r} has no token for images, which is the only "
        "supported way to read them"
    )


def _plain(value: Any) -> Any:
    """Returns a setting without the sizes that are not set, which some libraries list."""
    if isinstance(value, dict):
        return {name: item for name, item in sorted(value.items()) if item is not None}
    return value


def _blank(size: tuple[int, int]) -> Image:
    try:
        import PIL.Image
    except ImportError:
        raise DependencyError('images need Pillow: pip install "forvalue-index[vision]"') from None
    return PIL.Image.new("RGB", size)
