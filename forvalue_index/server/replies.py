"""What answers of the API look like, with the names and fields of `--json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    total: int = Field(description="rows that meet the conditions, wherever the page begins")


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
    writable: bool = Field(description="whether this server takes rows and decisions")
    images: bool = Field(description="whether the rows have images")
    config: dict[str, Any]


class FieldValue(_Answer):
    """A value of a field, and how many rows have it."""

    value: str = Field(description="as conditions name it: text, or JSON if it is not text")
    count: int


class FieldCounts(_Answer):
    """The values of one field that is worth filtering by."""

    name: str
    values: list[FieldValue] = Field(description="the most frequent first, 100 at most")
    distinct: int
    missing: int = Field(description="rows without the field")


class FieldsAnswer(_Answer):
    """The fields of the rows that meet the conditions, with counts."""

    rows: int = Field(description="that were counted")
    fields: list[FieldCounts] = Field(description="those of few and short values")
    others: list[str] = Field(description="fields of long, nested or too many values")


class Job(_Answer):
    """Long work, which goes on when its request has ended."""

    id: str
    kind: Literal["score", "audit", "add"]
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    stage: str = Field(description='such as "encoding"; "" before it begins')
    done: int
    total: int = Field(description="0: not known")
    seconds: float = Field(description="since it began")
    error: str | None = Field(None, description="of a job that failed: one sentence")


class JobsAnswer(_Answer):
    """The jobs that the server knows of, the newest first."""

    jobs: list[Job]


class ValueRow(_Answer):
    """What a training sample is worth."""

    id: int
    key: str
    value: float
    values: dict[str, float] | None = Field(None, description="by group of targets")
    exact: float | None = None
    loss: float
    tokens: int
    scored: int
    self_influence: float
    sample: dict[str, Any]


class GroupRow(_Answer):
    """What a group of training rows is worth."""

    name: str
    samples: int
    mean: float
    se: float | None
    sum: float
    helpful: float


class ScoreResult(_Answer):
    """The result of a score, as `forvalue score --json` prints it."""

    targets: int
    target_groups: dict[str, int]
    samples: int
    combine: str
    metric: str
    mean: float
    helpful: float
    groups: list[GroupRow]
    best: list[ValueRow]
    worst: list[ValueRow]


class Suspect(_Answer):
    """A row that somebody should look at, as `forvalue audit --json` prints it."""

    id: int
    key: str
    suspicion: float
    kind: str
    reasons: list[str]
    twin: str | None
    scores: dict[str, float | None]
    sample: dict[str, Any]


class AuditResult(_Answer):
    """The result of an audit."""

    rows: list[Suspect]
    samples: int = Field(description="rows that were looked through")
    verdict: str = Field(description="how many are wrong, in a sentence or two")


class AddResult(BaseModel):
    """The result of an addition, with the names of `AddReport`."""

    model_config = ConfigDict(extra="allow")

    added: int
    updated: int
    skipped: int
    samples: int


class Removed(_Answer):
    """How many rows were removed, and how many are left."""

    removed: int
    samples: int


class Decision(_Answer):
    """What a person decided about a row."""

    key: str
    decision: Literal["keep", "drop", "fix"]
    row: dict[str, Any] | None = None
    note: str = ""
    time: str = Field(description="ISO 8601, UTC")


class DecisionsAnswer(_Answer):
    """All decisions, in the order in which they were made, and how many of each kind."""

    decisions: list[Decision]
    counts: dict[str, int]
    writable: bool = Field(description="whether this server takes decisions (--allow-write)")
