"""What the model itself answers, as a query: the very tokens that it made are those scored.

row -> prompt tokens -> generation -> sample
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forvalue_index.config import FormatConfig
from forvalue_index.data.messages import messages_of
from forvalue_index.data.tokens import special_tokens
from forvalue_index.errors import InputError
from forvalue_index.model.generation import Sampling, end_tokens, generate, text_of
from forvalue_index.pipeline.session import Reader
from forvalue_index.records import Row, Sample

STUB = "x"  # stands for the answer of a chat while there is none


def respond(
    reader: Reader,
    prompt: str | Row,
    format: FormatConfig,
    sampling: Sampling,
    report: Callable[[str], None] | None,
) -> Sample:
    """Returns a row with the model's answer; see `InfluenceIndex.respond`."""
    if reader.lm.task == "classification":
        raise InputError(f"{reader.lm.name} is a classifier and writes no answers: use query")
    row, format = _prompted(prompt, format)
    [stub] = reader.samples([_answered(row, format, _stub(reader, format))], format)
    if stub.truncated:
        raise InputError(
            f"the prompt has more than the {len(stub.input_ids) - 1} tokens that the index reads "
            "before an answer: shorten it"
        )
    ids = stub.input_ids[: _answer_start(stub)]
    unanswered = replace(stub, input_ids=ids, scored=np.zeros(len(ids), np.bool_))
    made = generate(reader.lm, unanswered, sampling, report)
    text = text_of(reader.lm, unanswered, made)
    # The end of an answer counts where it counts in the rows of the index.
    if made[-1] in end_tokens(reader.lm) and made[-1] not in stub.input_ids[stub.scored]:
        made = made[:-1]
    if not text:
        raise InputError(
            "the model gives this prompt an empty answer, so there is nothing to attribute"
        )
    return replace(
        stub,
        row=_with_text(stub.row, format, text),
        input_ids=np.array([*ids, *made], dtype=np.int32),
        scored=np.arange(len(ids) + len(made)) >= len(ids),
    )


def _stub(reader: Reader, format: FormatConfig) -> str:
    """Returns a text that stands for the answer, and that no token shares with the prompt."""
    if format.is_chat or format.form == 1:
        return STUB
    lm = reader.lm
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
    # A text that is gone on with is a prompt and a response.
    elif format.text_field is not None or (
        format.messages_field is not None
        and format.messages_field not in prompt
        and format.prompt_field in prompt
    ):
        format = format.of_kind("prompt_field")
    return prompt, replace(format, score="response", last_turn=True)


def _answered(row: Row, format: FormatConfig, text: str) -> Row:
    """Returns the row with an answer."""
    if format.messages_field is None and isinstance(row.get(format.prompt_field), list):
        return row | {format.response_field: [{"role": "assistant", "content": text}]}
    if format.messages_field is None:
        return row | {format.response_field: text}
    messages = messages_of(row, "the prompt", format.messages_field, format.form)
    return row | {format.messages_field: [*messages, {"role": "assistant", "content": text}]}


def _with_text(row: Row, format: FormatConfig, text: str) -> Row:
    """Returns an answered row with another answer."""
    field = format.messages_field or format.response_field
    if not isinstance(row[field], list):
        return row | {field: text}
    *messages, answer = row[field]
    return row | {field: [*messages, answer | {"content": text}]}
