"""What requests and answers of the API look like, with the names and fields of `--json`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from forvalue_index.config import FormatConfig
from forvalue_index.metric import METRICS
from forvalue_index.records import Row
from forvalue_index.server.problem import HttpError

LONGEST_TEXT = 50_000  # characters of the texts of one request, together
MOST_HITS = 200
MOST_ROWS = 200
MOST_CANDIDATES = 2000
MOST_NEW_TOKENS = 1024
LONGEST_CONDITION = 2000  # characters
MOST_CONDITIONS = 20

MetricName = Literal["dot", "cosine", "per-token", "decorrelated", "lexical", "hybrid"]
Conditions = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_CONDITION)]],
    Field(max_length=MOST_CONDITIONS, description='such as "source=math"; all must hold'),
]
Hits = Annotated[int, Field(ge=1, le=MOST_HITS, description="hits at most")]
Range = Annotated[list[int], Field(min_length=2, max_length=2)]

assert set(METRICS) == set(MetricName.__args__)  # type: ignore[attr-defined]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Choice(_Request):
    """Which samples are hits."""

    k: Hits = 10
    metric: MetricName = "dot"
    where: Conditions = []
    exact: bool = Field(False, description="run the best candidates again, for exact scores")
    candidates: int | None = Field(None, ge=1, le=MOST_CANDIDATES)
    flat: bool = Field(False, description="compare every vector, without a derived index")


class Asked(_Request):
    """A query: prompt and response, or text; and which part of the response counts."""

    prompt: str | None = None
    response: str | None = None
    text: str | None = Field(None, description="plain text instead of prompt and response")
    label: str | None = Field(None, description="class of the text, for a sequence classifier")
    span: str | None = Field(None, description="ask about this part of the response only")
    tokens: Range | None = Field(None, description="or about scored tokens A to B, without B")
    characters: Range | None = Field(
        None, description="or about the tokens of characters A to B of the response, without B"
    )

    def row(self, format: FormatConfig) -> tuple[Row, FormatConfig]:
        """Returns the query as a row, and its format, given that of the index.

        Raises:
            HttpError: it is neither a prompt and a response nor a text, or is too long.
        """
        require_length(self.prompt, self.response, self.text, self.label, self.span)
        typed = self.response is not None or self.prompt is not None
        if typed == (self.text is not None) or (typed and self.response is None):
            raise HttpError(422, 'give "prompt" and "response", or "text"')
        if (self.label is None) != (format.label_field is None):
            wanted = 'give "label" too' if self.label is None else 'leave out "label"'
            kind = "a classifier's" if self.label is None else "not a classifier's"
            raise HttpError(422, f"the index is {kind}: {wanted}")
        more: Row = {} if format.label_field is None else {format.label_field: self.label}
        if self.text is not None:
            field = format.text_field or "text"
            plain = replace(format.of_kind("text_field"), text_field=field)
            return {field: self.text} | more, plain
        row: Row = {format.prompt_field: self.prompt or "", format.response_field: self.response}
        return row | more, format.of_kind("prompt_field")


class QueryRequest(Asked, Choice):
    """A query and which hits are wanted."""

    opponents: bool = Field(False, description="samples that made the response less likely")
    highlight: bool = Field(False, description="add the tokens of the hits; runs them again")


class ExplainRequest(Asked):
    """A query, and the key of the training sample that is explained."""

    key: str
    terms: bool = Field(True, description="add the term of each pair of scored tokens")


class AskRequest(Choice):
    """A prompt that the model answers, and which hits of the answer are wanted."""

    prompt: str
    max_new_tokens: int = Field(256, ge=1, le=MOST_NEW_TOKENS)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    opponents: bool = Field(False, description="samples that made the answer less likely")
    span: str | None = Field(None, description="ask about this part of the answer only")
    tokens: Range | None = Field(None, description="or about scored tokens A to B, without B")


class Error(BaseModel):
    """What every answer of 4xx and 5xx holds."""

    error: str = Field(description="one sentence: what happened, and what to do")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Health(_Answer):
    """Whether the server works."""

    status: Literal["ok"]
    model: Literal["loading", "ready", "failed"]
    pending: int = Field(description="requests to the model that are worked on or wait")


class HitAnswer(_Answer):
    """One training sample, as a hit."""

    query: int
    rank: int
    id: int
    key: str
    score: float
    sample: dict[str, Any]
    exact: bool = False
    parts: dict[str, float] | None = None
    shared: list[str] | None = None
    tokens: list[tuple[str, float | None]] | None = Field(
        None, description="text and contribution of each; null: it is not scored"
    )
    rejected: int | None = Field(None, description="token with which a rejected text begins")
    turns: list[tuple[int, int, str]] | None = Field(
        None, description="whose words which tokens of a conversation are: first, end, role"
    )


class HitsAnswer(_Answer):
    """Hits, the best first."""

    hits: list[HitAnswer]


class StoredRow(_Answer):
    """A training sample as the index keeps it."""

    id: int
    key: str
    content_hash: str
    row: dict[str, Any]
    n_tokens: int
    n_scored: int
    truncated: bool
    loss: float
    norm: float


class RowsAnswer(_Answer):
    """A page of rows."""

    rows: list[StoredRow]
    more: bool = Field(description="whether there are rows after the last of these")


class Side(_Answer):
    """A text of an explanation, token by token."""

    tokens: list[str]
    scored: list[bool]
    contributions: list[float]
    rejected: int | None = Field(None, description="token with which a rejected text begins")
    turns: list[tuple[int, int, str]] | None = Field(
        None, description="whose words which tokens of a conversation are: first, end, role"
    )


class ExplainAnswer(_Answer):
    """The exact influence of a training sample on a query."""

    id: int
    key: str
    score: float
    query: Side
    sample: Side
    terms: list[list[float]] | None = None


class InfoAnswer(BaseModel):
    """What the index holds and what it was made with; more names may join."""

    model_config = ConfigDict(extra="allow")

    samples: int
    removed: int
    dim: int
    model: str
    fields: list[str] = Field(description="names of the rows' fields")
    config: dict[str, Any]


def require_length(*texts: str | None) -> None:
    """Checks how long the texts of a request are.

    Raises:
        HttpError: together, they are too long.
    """
    n = sum(len(text) for text in texts if text is not None)
    if n > LONGEST_TEXT:
        raise HttpError(
            413, f"the texts have {n:,} characters, and at most {LONGEST_TEXT:,} are read: cut them"
        )
