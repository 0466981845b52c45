"""The model's own answer as a query: the tokens that it generated are scored.

row -> prompt tokens -> generation -> sample
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.messages import messages_of
from forvalue_index.data.preferences import chosen_format, contrast
from forvalue_index.data.token_rows import query_format, without_tokens
from forvalue_index.data.tokens import special_tokens
from forvalue_index.errors import InputError
from forvalue_index.field_types import require_class
from forvalue_index.model.generation import Sampling, end_tokens, generate, text_of
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Row, Sample

STUB = "x"  # the answer of a chat, before there is one


def respond(
    session: Session,
    prompt: str | Row,
    sampling: Sampling | None,
    format: FormatConfig | None,
    report: Callable[[str], None] | None,
) -> Sample:
    """Returns a row with the model's answer; see `InfluenceIndex.respond`."""
    if session.lm.task == "classification":
        raise InputError(f"{session.lm.name} is a classifier and writes no answers: use query")
    require_class(format, FormatConfig)
    if not isinstance(prompt, str | dict):
        raise InputError(f"a prompt is text or a row, not {type(prompt).__name__}")
    row, format = _prompted(prompt, format or session.config.format)
    stand_in = _stub(session, format)
    [stub] = session.samples([_answered(row, format, stand_in)], format)
    if stub.truncated:
        raise InputError(
            f"the prompt has more than the {len(stub.input_ids) - 1} tokens that the index reads "
            "before an answer: shorten it"
        )
    ids = stub.input_ids[: _answer_start(stub)]
    unanswered = replace(stub, input_ids=ids, scored=np.zeros(len(ids), np.bool_))
    made = generate(session.lm, unanswered, sampling or Sampling(), report)
    text = text_of(session.lm, unanswered, made)
    # The end of an answer counts where it counts in the rows of the index.
    if made[-1] in end_tokens(session.lm) and made[-1] not in stub.input_ids[stub.scored]:
        made = made[:-1]
    if not text:
        raise InputError(
            "the model gives this prompt an empty answer, so there is nothing to attribute: ask "
            "another prompt"
        )
    return replace(
        stub,
        row=_with_text(stub.row, format, text),
        input_ids=np.array([*ids, *made], dtype=np.int32),
        scored=np.arange(len(ids) + len(made)) >= len(ids),
    )


def instead(
    session: Session, query: Row | Sample, text: str, format: FormatConfig | None
) -> Sample:
    """Returns a query why its answer and not another; see `InfluenceIndex.instead`."""
    format = format or session.config.format
    if isinstance(query, Sample):
        if format.messages_field is not None and format.messages_field not in query.row:
            format = format.of_kind("prompt_field")  # the prompt was a text
        format = answered_format(format)
    else:
        format = chosen_format(query_format(query, format))
        [query] = session.samples(query, format)
    if query.label is not None:
        raise InputError("a class has no other text: query for the other class")
    [other] = session.samples([_with_text(query.row, format, text)], format)
    return contrast(query, other)


def _stub(session: Session, format: FormatConfig) -> str:
    """Returns a text that stands for the answer, and that no token shares with the prompt."""
    if format.is_chat or format.form == 1:
        return STUB
    lm = session.lm
    known, unusable = special_tokens(lm.tokenizer), end_tokens(lm)
    images = "" if lm.vision is None else lm.vision.placeholder
    first = {text: known[text] for text in (lm.tokenizer.bos_token,) if text in known}
    usable = (
        text
        for text, id in (first | known).items()
        if id not in unusable and id < lm.head.vocabulary and text != images
    )
    return next(usable, STUB)


def _answer_start(stub: Sample) -> int:
    """Returns where the last run of scored tokens begins."""
    unscored = np.flatnonzero(~stub.scored[: np.flatnonzero(stub.scored)[-1]])
    return int(unscored[-1]) + 1


def _prompted(prompt: str | Row, format: FormatConfig) -> tuple[Row, FormatConfig]:
    """Returns the row of a prompt, and the format in which its answer alone is scored."""
    if isinstance(prompt, str):
        prompt, format = {format.prompt_field: prompt}, format.of_kind("prompt_field")
    elif (
        format.messages_field is not None
        and format.messages_field not in prompt
        and format.prompt_field in prompt
    ):
        format = format.of_kind("prompt_field")
    return prompt, answered_format(format)


def answered_format(format: FormatConfig) -> FormatConfig:
    """Returns the format in which of a row that was answered the answer alone is scored."""
    format = without_tokens(chosen_format(format))
    if format.text_field is not None:  # a text that is gone on with is a prompt and a response
        format = format.of_kind("prompt_field")
    return replace(format, score="response", last_turn=True)


def _answered(row: Row, format: FormatConfig, text: str) -> Row:
    """Returns the row with an answer."""
    if format.messages_field is None and isinstance(row.get(format.prompt_field), list):
        return row | {format.response_field: [{"role": "assistant", "content": text}]}
    if format.messages_field is None:
        return row | {format.response_field: text}
    messages = messages_of(row, "the prompt", format.messages_field, format.form)
    return row | {format.messages_field: [*messages, {"role": "assistant", "content": text}]}


def _with_text(row: Row, format: FormatConfig, text: str) -> Row:
    """Returns an answered row with another answer; a plain text is one altogether."""
    field = format.text_field or format.messages_field or format.response_field
    if not isinstance(row[field], list):
        return row | {field: text}
    *messages, answer = row[field]
    return row | {field: [*messages, answer | {"content": text}]}
