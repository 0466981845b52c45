"""Conversations to text: a chat template writes them out, and what the assistant says is found.

    conversation -> rendered text + the spans that are scored

Where the template marks the assistant's parts ({% generation %}), its marks are the spans. Where it
does not, a turn is what the text up to it, with the header that asks for an answer, lacks of the
text that includes it; both must be the beginning of the whole text, or the row is refused. Where
the template asks without a header, the header is what stands before any other answer as well. Knows
no token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat_check import require_tools, require_written
from forvalue_index.data.messages import (
    CALL,
    Message,
    answers,
    as_calls,
    plain_text,
    weighted,
)
from forvalue_index.data.row_text import Conversation
from forvalue_index.data.tokens import Rendered, Span, special_tokens
from forvalue_index.errors import InputError, RowError
from forvalue_index.rendering import RenderError, TemplateReadError, read_chat, render_chat

PROBE = "Qx7Zk"
"""An answer that no template writes by itself, to see what stands before an answer."""

TODAY = date(2024, 7, 26)
"""The day that a template is told when it asks: vectors of two days must meet."""


def own_template(tokenizer: Any) -> str:
    """Returns the chat template that comes with a tokenizer or a processor.

    Raises:
        InputError: it has none.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InputError(
            "the model's tokenizer has no chat template: pass --chat-template FILE, or use rows "
            "with a prompt and a response"
        )
    return str(template)


class ChatTemplate:
    """Writes conversations out with one template, and finds the assistant's parts in them."""

    def __init__(self, template: str, tokenizer: Any, config: FormatConfig) -> None:
        """Takes the template's text, and a tokenizer for its special tokens.

        Raises:
            InputError: the template cannot be read.
        """
        self._template = _on_a_fixed_day(template)
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None
        self._names = dict(tokenizer.special_tokens_map)
        longest_first = sorted(special_tokens(tokenizer), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._config = config
        try:
            read_chat(self._template)
        except TemplateReadError as error:
            raise InputError(f"the chat template cannot be read: {error}; correct it") from None

    def render(self, conversation: Conversation, source: str) -> Rendered:
        """Returns a conversation as text, with the spans of what is scored.

        These are the assistant's turns, or of TRL's prompt and completion all behind the prompt.
        A turn without content has none for the template, or where the template needs it, null.

        Raises:
            RowError: the template refuses the messages or leaves one out, the assistant says
                nothing, or its turns cannot be told from the rest with certainty.
        """
        messages = self._settled(conversation.messages)
        conversation = replace(conversation, messages=messages)
        try:
            return self._render(conversation, source)
        except RowError:
            if all("content" in message for message in messages):
                raise
            named = [{"content": None} | message for message in messages]
            with suppress(RowError):
                return self._render(replace(conversation, messages=named), source)
            raise

    def _render(self, conversation: Conversation, source: str) -> Rendered:
        messages = conversation.messages
        every = answers(messages)
        turns = weighted(messages, every, source)
        whole, marks = self._write(conversation, len(messages), source)
        if self._config.score == "all":
            spans = [(0, len(whole))]
        elif not turns:
            raise RowError(
                source,
                "no message of the assistant has text that counts, so there is nothing to score",
            )
        else:
            spans = self._scored(conversation, every, turns, whole, marks, source)
        if self._config.form > 1:
            require_tools(conversation.tools or [], whole, source)
            require_written(messages, whole, source)
        return Rendered(whole, [span for span in spans if span[0] < span[1]])

    def _scored(
        self,
        conversation: Conversation,
        every: list[int],
        turns: list[int],
        whole: str,
        marks: list[Span],
        source: str,
    ) -> list[Span]:
        """Returns what is scored: the turns, or all of a completion that has no silent turn."""
        first = conversation.completion
        if first is not None:
            turns, every = ([i for i in found if i >= first] for found in (turns, every))
            if not turns:
                raise RowError(source, "the completion holds nothing that the assistant says")
            if turns == every and not self._config.last_turn:
                before, _ = self._write(conversation, first, source, ask=True)
                if whole.startswith(before):
                    return self._completion(whole, len(before))
        if self._config.last_turn:
            turns = turns[-1:]
        spans = self._spans(conversation, every, turns, whole, marks, source)
        return [self._with_end(whole, span) for span in spans]

    def _settled(self, messages: list[Message]) -> list[Message]:
        """Returns messages with what the model calls in the form that the template asks for.

        That is "tool_calls" where the template knows them, and else the text of the call.
        """
        if self._config.form == 1:
            return messages
        change = as_calls if "tool_calls" in self._template else _as_said
        return [change(message) if message["role"] == CALL else message for message in messages]

    def _completion(self, whole: str, start: int) -> list[Span]:
        """Returns the span of a completion: to the end of the text, as TRL scores it.

        Without the end of its last turn, where that is not to be scored.
        """
        end = len(whole)
        if self._config.eos is False:
            end = self._with_end(whole, (start, self._trimmed(whole, start, end)))[1]
        return [(start, end)]

    def _spans(
        self,
        conversation: Conversation,
        every: Sequence[int],
        turns: Sequence[int],
        whole: str,
        marks: list[Span],
        source: str,
    ) -> list[Span]:
        """Returns where turns are in the whole text; `every` are all of the assistant's."""
        if not self._marked:
            return [self._turn(conversation, i, whole, source) for i in turns]
        start = 0
        if conversation.completion is not None or self._config.last_turn:
            start = self._end_before(conversation, turns[0], whole, source)
        spans = [span for span in marks if start <= span[0] < span[1]]
        for i in sorted(set(every) - set(turns)):
            if i < turns[0] and start:
                continue
            start_of = self._end_before(conversation, i, whole, source)
            end = self._end_before(conversation, i + 1, whole, source)
            spans = [span for span in spans if not start_of <= span[0] < end]
        return spans

    def _write(
        self, conversation: Conversation, n: int, source: str, ask: bool = False
    ) -> tuple[str, list[Span]]:
        """Returns the text of the first n messages and the spans that the template marks.

        `ask`: up to where the assistant's next turn begins.
        """
        try:
            return render_chat(
                self._template,
                conversations=[conversation.messages[:n]],
                tools=conversation.tools,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=ask,
                **(self._names | conversation.arguments),
            )
        except RenderError as error:
            raise RowError(source, f"the chat template refuses the messages ({error})") from None

    def _turn(self, conversation: Conversation, i: int, whole: str, source: str) -> Span:
        """Returns where turn i is in the whole text, its end-of-turn token included."""
        messages = conversation.messages
        before, _ = self._write(conversation, i, source, ask=True)
        after, _ = self._write(conversation, i + 1, source)
        if whole.startswith(after) and after.startswith(before):
            start = len(before) + self._header(conversation, i, before, after, source)
            return start, self._trimmed(whole, start, len(after))
        # The template writes the turn in another way once others follow, or begins it otherwise
        # than it asks for it (reasoning that is left out): then what the message says must stand
        # right behind its header, with a special token right behind it.
        start = _common(before, whole)
        said = messages[i].get("content")
        if (
            start >= self._end_before(conversation, i, whole, source)
            and messages[i].keys() - {"weight"} == {"role", "content"}
            and isinstance(said, str)
        ):
            for way in _ways_of_saying(said):
                end = self._special.match(whole, start + len(way))
                if way and whole.startswith(way, start) and end is not None:
                    return start, end.end()
        raise RowError(source, _unclear(i))

    def _header(
        self, conversation: Conversation, i: int, before: str, after: str, source: str
    ) -> int:
        """Returns how long the header of turn i is that `after` has, and `before` has not yet.

        It is 0 where the template writes the header when it asks for an answer: what follows then
        is what a model would say, reasoning and marks of tools included.

        Raises:
            RowError: there is one, and the message does not stand right behind it.
        """
        messages = conversation.messages
        added, message = after[len(before) :], messages[i]
        ways = [way for way in _ways_of_saying(plain_text(message)) if way.strip()]
        bare = added.lstrip()
        if any(bare.startswith(way) and bare.find(way, 1) < 0 for way in ways):
            return 0
        unasked, _ = self._write(conversation, i, source)
        if before[_common(before, unasked) :].strip():
            return 0
        is_text = not isinstance(message.get("content"), list)
        content = PROBE if is_text else [{"type": "text", "text": PROBE}]
        probe = {"role": message["role"], "content": content}
        refused = RowError(source, _unmarked(i))
        try:
            probed = replace(conversation, messages=[*messages[:i], probe])
            other, _ = self._write(probed, i + 1, source)
        except RowError:  # such an answer may not follow, where a call may
            raise refused from None
        header, *rest = other[len(before) :].split(PROBE)
        if not other.startswith(before) or len(rest) != 1:
            raise refused
        if not header.strip():
            return 0
        behind = added[len(header) :].lstrip()
        # What is written of calls, and of reasoning in a field of its own, is not known.
        known = ways and message.keys() <= {"role", "content", "weight"}
        if not added.startswith(header) or (
            known and not any(behind.startswith(way.lstrip()) for way in ways)
        ):
            raise refused
        return len(header)

    def _end_before(self, conversation: Conversation, i: int, whole: str, source: str) -> int:
        """Returns where the text of the messages before i ends in the whole text."""
        before, _ = self._write(conversation, i, source)
        if not whole.startswith(before):
            raise RowError(source, _unclear(i))
        return len(before)

    def _trimmed(self, whole: str, start: int, end: int) -> int:
        """Returns the end of a turn without the white space behind its last special token.

        A model stops at that token; it never writes the line break that templates put there.
        """
        shorter = start + len(whole[start:end].rstrip())
        return shorter if self._special_before(whole, start, shorter) is not None else end

    def _special_before(self, whole: str, start: int, end: int) -> int | None:
        """Returns where the special token that ends at `end` begins."""
        for token in self._special.finditer(whole, start, end):
            if token.end() == end:
                return token.start()
        return None

    def _with_end(self, whole: str, span: Span) -> Span:
        """Returns a span with or without its end-of-turn token, as the configuration has it."""
        start, end = span
        begin = self._special_before(whole, start, end)
        if self._config.eos is False and begin is not None:
            return start, begin
        if self._config.eos and begin is None:
            token = self._special.match(whole, end)
            return start, end if token is None else token.end()
        return span


def _unclear(i: int) -> str:
    return (
        f"the chat template writes message {i} differently once others follow it, so what the "
        "assistant says there cannot be determined with certainty: use "
        "--last-turn, or a template with {% generation %} marks (--chat-template FILE)"
    )


def _unmarked(i: int) -> str:
    return (
        "the chat template writes no header when it asks for an answer, and what the assistant "
        f"says in message {i} cannot be determined with certainty from the header there: use a "
        "template with {% generation %} marks (--chat-template FILE)"
    )


def _as_said(message: Message) -> Message:
    return message | {"role": "assistant"}


def _common(one: str, other: str) -> int:
    """Returns how many characters two texts begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _ways_of_saying(content: str) -> list[str]:
    """Returns what a template may leave of a content: all, trimmed, without its reasoning."""
    answer = content.rpartition("</think>")[2]
    return sorted({content, content.strip(), answer.lstrip("\n"), answer.strip()}, key=len)[::-1]


def _on_a_fixed_day(template: str) -> str:
    """Returns a template that writes the same text on every day."""
    return re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)",
        lambda match: json.dumps(TODAY.strftime(match[2])),
        template,
    )
