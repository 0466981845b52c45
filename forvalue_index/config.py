"""What an index is made with: chosen at creation, kept in the catalogue, never changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from forvalue_index.errors import InputError

RECIPES = ("balanced", "kfac", "raw")
SKETCHES = ("block", "tensor")
RANKS = ("dot", "cosine", "per-token")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model is read, and how."""

    name: str  # path or hub id
    revision: str | None = None
    dtype: str = "auto"  # of the weights; auto: as the checkpoint has them
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class FormatConfig:
    """How a row becomes tokens, and which of them are scored.

    With `text_field` the whole text is scored after its first token; otherwise a row is the
    prompt's tokens followed by the response's, and only the response's are scored.
    """

    prompt_field: str = "prompt"
    response_field: str = "response"
    text_field: str | None = None
    key_field: str | None = None  # None: the key is the content hash
    add_eos: bool = False
    max_length: int | None = None  # in tokens; None: the model's own limit, at most 2048


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """How a sample becomes a vector: recipe, then sketch, then projection."""

    recipe: str = "balanced"
    dim: int = 1024  # numbers in a stored vector, two bytes each
    sketch: str = "block"
    sketch_dim: int = 16384  # numbers in a sketch; one that is not wider than dim is stored whole
    fit_samples: int = 4096  # training samples that statistics and projection are learned from
    seed: int = 0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise InputError(f"recipe {self.recipe!r} is not one of {', '.join(RECIPES)}")
        if self.sketch not in SKETCHES:
            raise InputError(f"sketch {self.sketch!r} is not one of {', '.join(SKETCHES)}")
        for name in ("dim", "sketch_dim", "fit_samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, but must be at least 1")


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Everything that is decided when an index is created."""

    model: ModelConfig
    format: FormatConfig = field(default_factory=FormatConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IndexConfig:
        """Returns the configuration that `to_json` wrote."""
        return cls(
            model=ModelConfig(**value["model"]),
            format=FormatConfig(**value["format"]),
            vector=VectorConfig(**value["vector"]),
        )
