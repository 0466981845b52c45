"""What requests to the API look like, with the names of the command line and of Python.

`replies.py` has the answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from forvalue_index.metric import METRICS

LONGEST_TEXT = 50_000  # characters of the texts of one request, together
MOST_HITS = 1000
MOST_ROWS = 200
MOST_CANDIDATES = 2000
MOST_NEW_TOKENS = 1024
LONGEST_CONDITION = 2000  # characters
MOST_CONDITIONS = 20
MOST_IMAGES = 16  # of one query
MOST_TARGETS = 2000  # rows of one score, audit or addition
LONGEST_KEY = 10_000  # characters
MOST_KEYS = 10_000
MOST_AUDITED = 10_000  # suspects of one audit

MetricName = Literal["dot", "cosine", "per-token", "decorrelated", "lexical", "hybrid"]
Conditions = Annotated[
    list[Annotated[str, Field(max_length=LONGEST_CONDITION)]],
    Field(max_length=MOST_CONDITIONS, description='such as "source=math"; all must hold'),
]
Hits = Annotated[int, Field(ge=1, le=MOST_HITS, description="hits at most")]
Place = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Range = Annotated[list[Place], Field(min_length=2, max_length=2)]
Slice = Annotated[list[Place | None], Field(min_length=2, max_length=2)]

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


Images = Annotated[
    list[Annotated[str, Field(description="a data: URI, or base64")]],
    Field(max_length=MOST_IMAGES, description="that go with the prompt or the text"),
]
RowJson = Annotated[
    dict[str, Any],
    Field(
        description="a row in the form of the index's, such as a conversation; its images are "
        "data: URIs or base64"
    ),
]
RowsJson = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_TARGETS)]


class Asked(_Request):
    """A query: prompt and response, text, or a row; and which part of the response counts."""

    prompt: str | None = None
    response: str | None = None
    text: str | None = Field(None, description="plain text instead of prompt and response")
    row: RowJson | None = None
    images: Images = []
    instead: str | None = Field(
        None, description="ask why this answer and not this other one: the difference of both"
    )
    label: str | None = Field(None, description="class of the text, for a sequence classifier")
    span: str | None = Field(None, description="ask about this part of the response only")
    tokens: Slice | None = Field(
        None, description="or about scored tokens A to B, without B; null: to the end"
    )
    characters: Range | None = Field(
        None, description="or about the tokens of characters A to B of the response, without B"
    )


class QueryRequest(Asked, Choice):
    """A query and which hits are wanted."""

    opponents: bool = Field(False, description="samples that made the response less likely")
    highlight: bool = Field(False, description="add the tokens of the hits; runs them again")


class ExplainRequest(Asked):
    """A query, and the key of the training sample that is explained."""

    key: str
    terms: bool = Field(True, description="add the term of each pair of scored tokens")


class AskRequest(Choice):
    """A prompt, or a row without an answer, that the model answers; which hits are wanted."""

    prompt: str | None = None
    row: RowJson | None = None
    images: Images = []
    instead: str | None = Field(
        None, description="ask why the answer and not this other one: the difference of both"
    )
    max_new_tokens: int = Field(256, ge=1, le=MOST_NEW_TOKENS)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    opponents: bool = Field(False, description="samples that made the answer less likely")
    span: str | None = Field(None, description="ask about this part of the answer only")
    tokens: Slice | None = Field(
        None, description="or about scored tokens A to B, without B; null: to the end"
    )


class ScoreRequest(_Request):
    """What the model should do well: a value is given to every training sample for it."""

    targets: Annotated[RowsJson, Field(description="rows in the form of the index's")]
    k: int = Field(5, ge=0, le=MOST_HITS, description="best and worst samples to list")
    combine: Literal["mean", "max", "each"] = "mean"
    metric: MetricName = "dot"
    target_group: str | None = Field(None, description="field of the targets")
    group_by: str | None = Field(None, description="field of the training rows, such as a source")
    where: Conditions = []
    exact: bool = Field(False, description="add the exact values of the listed samples")


class AuditRequest(_Request):
    """Which rows are looked through for likely wrong and repeated ones."""

    trusted: RowsJson | None = Field(None, description="rows that are known to be right")
    class_field: str | None = None
    where: Conditions = []
    top: int = Field(100, ge=0, le=MOST_AUDITED, description="suspects to report, at most")
    nearly: float = Field(0.98, gt=0, le=1, description="least cosine of near-duplicates")


class AddRequest(_Request):
    """Rows to add."""

    rows: Annotated[RowsJson, Field(description="rows in the form of the index's")]
    update: bool = Field(False, description="replace rows whose key is there with other content")


class RemoveRequest(_Request):
    """Which rows to remove: keys, or conditions."""

    keys: Annotated[list[str], Field(max_length=MOST_KEYS)] = []
    where: Conditions = []


class DecideRequest(_Request):
    """What is to become of a row; null takes the decision back."""

    key: str = Field(max_length=LONGEST_KEY)
    decision: Literal["keep", "drop", "fix"] | None
    row: dict[str, Any] | None = Field(None, description='of "fix": the whole row as it should be')
    note: str = Field("", max_length=2000)
