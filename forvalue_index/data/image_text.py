"""The images of a row in its text: the placeholders in it become the tokens that they take.

Knows no model: what stands for a picture in the text is asked of a `Vision`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from forvalue_index.data.tokens import Rendered, Span
from forvalue_index.errors import RowError, brief
from forvalue_index.picture import HASH, Picture

MARK = "<image>"
"""What stands for a picture in the text of many data sets, whatever the model's own word is."""


class Vision(Protocol):
    """What is asked of a model that reads pictures."""

    placeholder: str  # what stands for one picture in a text, before it is expanded
    insertion: str  # what a prompt gets for a picture that it has no placeholder for

    def expansion(self, size: tuple[int, int]) -> str:
        """Returns the text of the tokens that a picture of a width and height takes."""

    def special_ids(self, size: tuple[int, int]) -> frozenset[int]:
        """Returns the ids that stand for a picture of a size, and those that frame it."""


def with_parts(messages: Sequence[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """Returns messages whose contents are lists of parts, as chat templates of such models ask.

    `<image>` in a text becomes a part; where nothing stands for the row's images, they come first
    in the first message of the user.
    """
    result = []
    for message in messages:
        content = message.get("content")
        if content is None:  # a call of tools
            result.append(message)
            continue
        if isinstance(content, str):
            content = _parts(content) if images else [{"type": "text", "text": content}]
        # A template sees that there is an image, and needs nothing of it.
        content = [
            part | {"image": part["image"].get(HASH)}
            if isinstance(part.get("image"), dict)
            else part
            for part in content
        ]
        result.append(message | {"content": content})
    named = [p for m in result for p in m.get("content") or () if p.get("type") == "image"]
    if images and not named:
        asking = [m for m in result if m["role"] == "user"] or result
        asking[0]["content"] = [{"type": "image"}] * images + asking[0]["content"]
    return result


def _parts(text: str) -> list[dict[str, Any]]:
    pieces = re.split(f"({MARK}\n?)", text)
    return [
        {"type": "text", "text": piece} if i % 2 == 0 else {"type": "image"}
        for i, piece in enumerate(pieces)
        if piece
    ]


def with_placeholders(rendered: Rendered, images: int, vision: Vision) -> Rendered:
    """Returns a text that names its images in the model's way.

    `<image>` does as well as the model's own placeholder, and images that nothing stands for come
    before the text.
    """
    if not images or vision.placeholder in rendered.text:
        return rendered
    if rendered.text.count(MARK) == images:
        return _replaced(rendered, MARK, [vision.insertion] * images)
    inserted = vision.insertion * images
    spans = [(start + len(inserted), end + len(inserted)) for start, end in rendered.spans]
    return Rendered(inserted + rendered.text, spans)


def expand(
    rendered: Rendered, pictures: Sequence[Picture], vision: Vision, source: str
) -> Rendered:
    """Returns the text with the tokens of its pictures in the place of the placeholders.

    They are in no span: a model does not say them.

    Raises:
        RowError: there are not as many placeholders as pictures.
    """
    found = rendered.text.count(vision.placeholder)
    if found != len(pictures):
        raise RowError(
            source,
            f"the text holds {vision.placeholder!r} {found} times, but the row has "
            f"{len(pictures)} images: write it once for each",
        )
    try:
        texts = [vision.expansion(picture.size) for picture in pictures]
    except Exception as error:  # the code of a model's processor raises nearly anything
        sizes = ", ".join(f"{width} x {height}" for width, height in (p.size for p in pictures))
        raise RowError(
            source,
            f"the model's processor takes no image of {sizes} ({brief(error)}): "
            "give it in another size",
        ) from None
    return _replaced(rendered, vision.placeholder, texts)


def _replaced(rendered: Rendered, mark: str, texts: Sequence[str]) -> Rendered:
    """Returns a text with the n-th mark replaced by the n-th of `texts`, in no span."""
    pieces = rendered.text.split(mark)
    result, spans, old = "", [], 0
    for number, piece in enumerate(pieces):
        shift = len(result) - old
        spans += [(s + shift, e + shift) for s, e in _within(rendered.spans, old, old + len(piece))]
        result += piece + (texts[number] if number < len(texts) else "")
        old += len(piece) + len(mark)
    return Rendered(result, spans)


def _within(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """Returns the parts of spans that are between `start` and `end`."""
    parts = [(max(a, start), min(b, end)) for a, b in spans]
    return [(a, b) for a, b in parts if a < b]
