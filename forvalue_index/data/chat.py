"""Conversations to text: a chat template writes them out, and what the assistant says is found.

    conversation -> rendered text + the spans that are scored

Where the template marks the assistant's parts ({% generation %}), its marks are the spans;
`turn_spans.py` finds the turns where it does not. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from forvalue_index.config import FormatConfig
from forvalue_index.data.chat_check import require_tools, require_written
from forvalue_index.data.messages import (
    Message,
    answers,
    as_calls,
    nothing_said,
    said,
    says_something,
    weighted,
)
from forvalue_index.data.roles import CALL
from forvalue_index.data.row_text import Conversation
from forvalue_index.data.tokens import Rendered, Span, special_tokens
from forvalue_index.data.turn_spans import TurnFinder
from forvalue_index.errors import InputError, RowError
from forvalue_index.rendering import RenderError, TemplateReadError, read_chat, render_chat


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
        self._template = template
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
        if self._config.form == 1:
            every = said(messages, every)
        turns = weighted(messages, every, source)
        whole, marks = self._write(conversation, len(messages), source)
        if self._config.score == "all":
            spans = [(0, len(whole))]
        elif not said(messages, turns):
            raise RowError(source, nothing_said(messages))
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
        """Returns what is scored: the turns, or all of a completion whose turns all count."""
        first = conversation.completion
        if first is not None:
            turns, every = ([i for i in found if i >= first] for found in (turns, every))
            if not said(conversation.messages, turns):
                raise RowError(
                    source,
                    "the completion holds nothing that the assistant says: give its answer there",
                )
            if turns == every and not self._config.last_turn:
                before, _ = self._write(conversation, first, source, ask=True)
                if whole.startswith(before):
                    return self._completion(whole, len(before))
        if self._config.last_turn:
            turns = said(conversation.messages, turns)[-1:]
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
            finder = TurnFinder(conversation, whole, self._write, self._special, source)
            found = [self._turn(finder, conversation.messages[i], i) for i in turns]
            return [(start, self._trimmed(whole, start, end)) for start, end in filter(None, found)]
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

    def _turn(self, finder: TurnFinder, message: Message, i: int) -> Span | None:
        """Returns where a turn is; None: the template writes nothing of one that says nothing."""
        try:
            return finder.span(i)
        except RowError:
            if says_something(message):
                raise
            return None

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

    def _end_before(self, conversation: Conversation, i: int, whole: str, source: str) -> int:
        """Returns where the text of the messages before i ends in the whole text."""
        before, _ = self._write(conversation, i, source)
        if not whole.startswith(before):
            raise RowError(
                source,
                f"the chat template writes what stands before message {i} differently once others "
                "follow it, so what is scored cannot be determined with certainty: use a template "
                "that does not (--chat-template FILE)",
            )
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


def _as_said(message: Message) -> Message:
    return message | {"role": "assistant"}
