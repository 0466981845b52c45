"""What an index is made with: chosen at creation, kept in the catalogue, never changed."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, TypeVar, cast

from forvalue_index.errors import InputError, SchemaError
from forvalue_index.field_types import is_of, require_types, types_of

RECIPES = ("balanced", "kfac", "raw")
SKETCHES = ("block", "tensor")
BITS = (2, 3, 4, 8, 16)  # of a number of a stored vector; 16 are float16
MOST = 2**31 - 1  # numbers of a vector or a sketch, and samples that are fitted to
SCORES = ("response", "all")
TRUNCATIONS = ("unscored", "start", "end")  # what goes first when a row is too long
DTYPES = ("auto", "float32", "bfloat16", "float16")
ON_ERROR = ("stop", "skip")  # what is done about a row that cannot be used
TASKS = ("auto", "causal", "classification", "image-text")
FORMS = (1, 2)  # of reading rows: an index keeps the one that it was made with


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model is read, and how."""

    name: str  # path or hub id
    revision: str | None = None
    dtype: str = "auto"  # of the weights; auto: as the checkpoint has them
    trust_remote_code: bool = False
    adapters: tuple[str, ...] = ()  # PEFT checkpoints, whose influences are added up
    adapter_weights: tuple[float, ...] = ()  # of each in the sum; none: 1 each
    task: str = "auto"  # auto: what the checkpoint's configuration says
    gguf_file: str | None = None  # in the folder or on the hub; a file's own path needs none

    def __post_init__(self) -> None:
        require_types(self)
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.task not in TASKS:
            raise InputError(f"task {self.task!r} is not one of {', '.join(TASKS)}")
        if self.adapter_weights and len(self.adapter_weights) != len(self.adapters):
            raise InputError(
                f"{len(self.adapter_weights)} weights were given for {len(self.adapters)} "
                "adapters: give one weight for each adapter, or none"
            )
        if not all(0 < weight < math.inf for weight in self.adapter_weights):
            raise InputError(
                f"the weights of the adapters are {self.adapter_weights}: give positive numbers"
            )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a study fine-tunes a model: AdamW, a short warm-up, then linear decay to zero."""

    epochs: int = 3
    learning_rate: float = 1e-4  # the highest
    batch_size: int = 16  # samples
    seed: int = 0  # of the order of the samples

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: give a positive number")


@dataclass(frozen=True, slots=True)
class FormatConfig:
    """How a row becomes tokens, and which of them are scored.

    A row is plain text (`text_field`), a conversation (`messages_field`), or a prompt and a
    response. Of plain text every token after the first is scored; of the others the response's,
    or the assistant's, and no other.
    """

    prompt_field: str = "prompt"
    response_field: str = "response"
    text_field: str | None = None
    messages_field: str | None = None
    label_field: str | None = None  # of a classifier's rows: the class, by name or number
    image_field: str | None = None  # an image or several; those in messages need no field
    key_field: str | None = None  # None: the key is the content hash
    template: str | None = None  # Jinja that makes the prompt from a row's fields
    chat: bool = False  # prompt and response go through the chat template, as two messages
    chat_template: str | None = None  # Jinja; None: the tokenizer's own, as it is at creation
    score: str = "response"
    last_turn: bool = False  # of the assistant's turns only the last is scored
    eos: bool | None = None
    """Whether the end of a response is scored. None: in a chat, as the template has it; of a prompt
    and a response, yes, as trainers do; of plain text, no."""
    truncate: str = "unscored"
    max_length: int | None = None  # in tokens; None: the model's own limit, at most 2048
    tokens_field: str | None = None
    """Token ids as they are: the other fields are for reading, and for queries."""
    rejected_field: str | None = None
    """What a row prefers its response, conversation or text to: its influence is subtracted."""
    desirable_field: str | None = None  # where it is false, a row's influence has the opposite sign
    bos: bool = True  # without a chat template: what the tokenizer adds at the start is there
    template_args: tuple[str, ...] = ()  # NAME=VALUE, for the chat template; JSON, or else text
    ignored_fields: tuple[str, ...] = ()  # that have a meaning for trainers and are left out
    form: int = field(default=2, metadata={"before": 1})
    """2: a prompt and a response are one text to the tokenizer, its start token is added, the end
    is scored, nulls in nested values are as if they were not there, and fields that have a meaning
    are honoured or refused. 1: none of these."""

    def __post_init__(self) -> None:
        require_types(self)
        if self.form not in FORMS:
            raise InputError(f"form {self.form!r} of reading rows is not one of {FORMS}")
        if self.max_length is not None and self.max_length < 1:
            raise InputError(f"max_length is {self.max_length}: use 1 token or more")
        for argument in self.template_args:
            if not argument.partition("=")[1]:
                raise InputError(f"template argument {argument!r} is not NAME=VALUE")
        if self.score not in SCORES:
            raise InputError(f"score {self.score!r} is not one of {', '.join(SCORES)}")
        if self.truncate not in TRUNCATIONS:
            raise InputError(f"truncate {self.truncate!r} is not one of {', '.join(TRUNCATIONS)}")
        if self.text_field is not None and self.messages_field is not None:
            raise InputError("a row is plain text or messages: name one of the two fields")
        if self.label_field is not None and (self.rejected_field or self.desirable_field):
            raise InputError(
                "preferences are between texts, and a classifier's rows have none: name the "
                "label's "
                "field, or those of a preference"
            )
        if self.tokens_field is not None and (self.rejected_field or self.desirable_field):
            raise InputError(
                "preferences are read from texts, not from tokens: name the tokens' field, or "
                "those "
                "of a preference"
            )
        if self.template is not None and (self.text_field or self.messages_field):
            raise InputError("a template makes prompts: use it with a prompt and a response")
        if self.chat and self.text_field is not None:
            raise InputError("plain text is not a chat: use a prompt and a response, or messages")

    @property
    def is_chat(self) -> bool:
        """Whether rows go through a chat template."""
        return self.chat or self.messages_field is not None

    def of_kind(self, field: str) -> FormatConfig:
        """Returns the configuration for rows that have the field: text, messages or prompt.

        Which field that is, is left as it is. A prompt and a response go through the chat template
        where conversations do, and a template for prompts is for the rows that it was made for.
        The end of a response is scored where the ends of the index's own rows are.
        """
        endless = self.text_field is not None and field == "prompt_field" and self.eos is None
        return replace(
            self,
            eos=False if endless and self.form > 1 else self.eos,
            text_field=self.text_field if field == "text_field" else None,
            messages_field=self.messages_field if field == "messages_field" else None,
            template=None,
            tokens_field=None,
            rejected_field=None,
            desirable_field=None,
            chat=self.is_chat and field == "prompt_field",
        )


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """How a sample becomes a vector: recipe, then sketch, then projection, then codes."""

    recipe: str = "balanced"
    dim: int = 4096  # numbers in a stored vector
    sketch: str = "block"
    sketch_dim: int = 131072  # numbers in a sketch, at most
    fit_samples: int = 2048  # training samples that statistics and projection are learned from
    seed: int = 0
    bits: int = 4  # of each number

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise InputError(f"recipe {self.recipe!r} is not one of {', '.join(RECIPES)}")
        if self.sketch not in SKETCHES:
            raise InputError(f"sketch {self.sketch!r} is not one of {', '.join(SKETCHES)}")
        if type(self.bits) is not int or self.bits not in BITS:
            raise InputError(
                f"bits is {self.bits!r}, but must be one of {', '.join(map(str, BITS))}"
            )
        for name, least, most in (
            ("dim", 1, MOST),
            ("sketch_dim", 1, MOST),
            ("fit_samples", 1, MOST),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InputError(
                    f"{name} is {value!r}, but must be a whole number from {least} to {most}"
                )


FIRST: dict[type, tuple[str, ...]] = {
    ModelConfig: (
        "name",
        "revision",
        "dtype",
        "trust_remote_code",
        "adapters",
        "adapter_weights",
        "task",
    ),
    FormatConfig: (
        "prompt_field",
        "response_field",
        "text_field",
        "messages_field",
        "label_field",
        "image_field",
        "key_field",
        "template",
        "chat",
        "chat_template",
        "score",
        "last_turn",
        "eos",
        "truncate",
        "max_length",
    ),
    VectorConfig: ("recipe", "dim", "sketch", "sketch_dim", "fit_samples", "seed"),
}
"""The fields of the first version, which every index names. This never changes."""


def named(config: ModelConfig | FormatConfig | VectorConfig) -> dict[str, Any]:
    """Returns the fields that an index names, as JSON values: what it is made with.

    Those of the first version, and later ones where they differ from what an index was made with
    before there was the field: their default, or what the field's metadata has under "before",
    where new indexes are made otherwise. Such a field changes neither the text that is stored nor
    its hash, so that no index is locked out by an option that it does not use.
    """
    first, values = FIRST[type(config)], asdict(config)
    return {
        field.name: values[field.name]
        for field in fields(config)
        if field.name in first or getattr(config, field.name) != _before(field)
    }


def _before(field: Field[Any]) -> Any:
    return field.metadata.get("before", field.default)


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Everything that is decided when an index is created."""

    model: ModelConfig
    format: FormatConfig = field(default_factory=FormatConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as JSON values."""
        return {part.name: named(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IndexConfig:
        """Returns the configuration that `to_json` wrote, also that of an older version.

        Raises:
            SchemaError: a newer version did, with a setting that this one does not know.
        """
        unknown = sorted(set(value) - {part.name for part in fields(cls)})
        if unknown:
            raise SchemaError(_newer(f"settings for {', '.join(unknown)}"))
        return cls(
            model=_read(ModelConfig, value.get("model")),
            format=_read(FormatConfig, value.get("format")),
            vector=_read(VectorConfig, value.get("vector")),
        )


_Part = TypeVar("_Part", ModelConfig, FormatConfig, VectorConfig)


def _read(part: type[_Part], stored: Any) -> _Part:
    """Returns a part of the configuration from the fields that an index names."""
    stored = {} if stored is None else stored
    if not isinstance(stored, dict):
        raise SchemaError(_newer(f"{stored!r} for a {part.__name__}"))
    known = {field.name: field for field in fields(part)}
    unknown = [f"{name} = {value!r}" for name, value in stored.items() if name not in known]
    if unknown:
        raise SchemaError(_newer(", ".join(unknown)))
    types = types_of(cast(Any, part))
    values = {name: _before(field) for name, field in known.items()}
    for name, value in stored.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    for name, value in values.items():
        if not is_of(value, types[name]):
            shown = "nothing" if value is MISSING else repr(value)
            raise SchemaError(_newer(f"{shown} for {name}"))
    try:
        return part(**values)
    except InputError as error:  # a choice that was added later
        raise SchemaError(_newer(str(error))) from None


def _newer(what: str) -> str:
    return (
        f"the index was made by a newer version of this package, with settings that this one does "
        f"not know ({what}): pip install --upgrade forvalue-index, or build again"
    )
