"""Where a turn of the assistant is in a text of a chat template that marks none.

A turn is what the text up to it, with the header that asks for an answer, lacks of the text that
includes it; both must be the beginning of the whole text. Where the template asks without a header,
the header is what stands before any other answer as well. A template may write a turn in another
way once others follow, or refuse the beginning of a conversation. Then another answer is put in the
turn's place: the turn is what changes in the whole text. Knows no token ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from forvalue_index.data.messages import Message, plain_text
from forvalue_index.data.row_text import Conversation
from forvalue_index.data.tokens import Span
from forvalue_index.errors import RowError

PROBE = "Qx7Zk"
"""An answer that no template writes by itself, to see what stands around an answer."""

Write = Callable[..., tuple[str, list[Span]]]
"""Returns the text of the first n messages of a conversation: (conversation, n, source, ask)."""


class TurnFinder:
    """Finds the assistant's turns in the text that a template made of one conversation."""

    def __init__(
        self,
        conversation: Conversation,
        whole: str,
        write: Write,
        special: re.Pattern[str],
        source: str,
    ) -> None:
        """Takes a conversation and its whole text.

        Args:
            conversation: what was written.
            whole: the text.
            write: writes a conversation, or the beginning of one.
            special: matches a special token.
            source: where the row stands.
        """
        self._conversation = conversation
        self._messages = conversation.messages
        self._whole = whole
        self._write_with = write
        self._special = special
        self._source = source

    def span(self, i: int) -> Span:
        """Returns where turn i is in the whole text, its end-of-turn token included.

        Raises:
            RowError: that cannot be determined with certainty.
        """
        whole, messages = self._whole, self._messages
        before = self._beginning(messages[:i], ask=True)
        after = self._beginning(messages[: i + 1])
        if (
            before is not None
            and after is not None
            and whole.startswith(after)
            and after.startswith(before)
        ):
            return len(before) + self._header(i, before, after), len(after)
        return self._exchanged(i, before)

    def _beginning(self, messages: list[Message], *, ask: bool = False) -> str | None:
        """Returns the text of a part of a conversation; None: the template refuses it."""
        try:
            return self._write(messages, ask=ask)
        except RowError:
            return None

    def _write(self, messages: list[Message], *, ask: bool = False) -> str:
        conversation = replace(self._conversation, messages=messages)
        return self._write_with(conversation, len(messages), self._source, ask)[0]

    def _exchanged(self, i: int, before: str | None) -> Span:
        """Returns where turn i is: what another answer in its place changes in the whole text.

        It begins where the header ends that asks for it, if that stands there whatever the answer
        is; else where the other answer begins.
        """
        whole, messages = self._whole, self._messages
        unclear_turn = RowError(self._source, unclear(i))
        probed = [*messages[:i], _other_answer(messages[i]), *messages[i + 1 :]]
        try:
            head, *rest = self._write(probed).split(PROBE)
        except RowError:  # such an answer may not stand there, where a call may
            raise unclear_turn from None
        if len(rest) != 1 or not whole.endswith(rest[0]):
            raise unclear_turn
        end = len(whole) - len(rest[0])
        if before is not None and self._asks(i, before) and _begins((whole, head), before):
            start = len(before)
        elif whole.startswith(head):
            start = len(head)
        else:
            raise unclear_turn
        if not whole[start:end].strip():
            raise unclear_turn
        if messages[i].keys() - {"role", "content", "weight"}:  # a call's results may be within it
            later = [message | _other_answer(message) for message in messages[i + 1 :]]
            other = self._beginning([*messages[: i + 1], *later])
            if other is None or not other.startswith(whole[:end]):
                raise unclear_turn
        return start, self._closed(end, probed[: i + 1])

    def _closed(self, end: int, probed: list[Message]) -> int:
        """Returns where the special tokens end that close a turn, whose words end at `end`.

        They are those that stand behind it where it is the last, but the first may be another.
        """
        there, last = self._specials(self._whole, end), self._beginning(probed)
        if last is None:
            return end + len(next(there, ""))
        own = self._specials(last, last.rindex(PROBE) + len(PROBE))
        for number, (one, other) in enumerate(zip(there, own, strict=False)):
            if number and one != other:
                break
            end += len(one)
        return end

    def _specials(self, text: str, start: int) -> Iterator[str]:
        """Yields the special tokens that stand one behind the other in a text."""
        while token := self._special.match(text, start):
            start = token.end()
            yield token[0]

    def _asks(self, i: int, before: str) -> bool:
        """Returns whether the template writes a header when it asks for turn i."""
        unasked = self._beginning(self._messages[:i])
        return unasked is None or bool(before[_common(before, unasked) :].strip())

    def _header(self, i: int, before: str, after: str) -> int:
        """Returns how long the header of turn i is that `after` has, and `before` has not yet.

        It is 0 where the template writes the header when it asks for an answer: what follows then
        is what a model would say, reasoning and marks of tools included.

        Raises:
            RowError: there is one, and the message does not stand right behind it.
        """
        messages = self._messages
        added, message = after[len(before) :], messages[i]
        ways = [way for way in _ways_of_saying(plain_text(message)) if way.strip()]
        bare = added.lstrip()
        if any(bare.startswith(way) and bare.find(way, 1) < 0 for way in ways):
            return 0
        if self._asks(i, before):
            return 0
        refused = RowError(self._source, _unmarked(i))
        try:
            other = self._write([*messages[:i], _other_answer(message)])
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


def _other_answer(message: Message) -> Message:
    """Returns a message of the same kind that says nothing but `PROBE`."""
    is_text = not isinstance(message.get("content"), list)
    content = PROBE if is_text else [{"type": "text", "text": PROBE}]
    return {"role": message["role"], "content": content}


def _begins(texts: tuple[str, ...], beginning: str) -> bool:
    return all(text.startswith(beginning) for text in texts)


def _common(one: str, other: str) -> int:
    """Returns how many characters two texts begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _ways_of_saying(content: str) -> list[str]:
    """Returns what a template may leave of a content: all, trimmed, without its reasoning."""
    answer = content.rpartition("</think>")[2]
    return sorted({content, content.strip(), answer.lstrip("\n"), answer.strip()}, key=len)[::-1]


def unclear(i: int) -> str:
    """Returns in words that it is not certain where turn i is."""
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
