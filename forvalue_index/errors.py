"""Every error this package raises on purpose.

    ForvalueError
    ├── InputError                  a file, a row or an option that cannot be used
    │   └── RowError                one row, named by file and line
    │       └── UnreadableRowError  one that the model makes nothing of: a ModelError as well
    ├── KeyConflictError            a key that is there already, with other content
    ├── ModelError                  a model that cannot be loaded, read or trusted
    ├── IndexMissingError           the directory holds no index, or one is in the way
    ├── FingerprintError            vectors of two different makes would meet
    ├── CorruptIndexError           what is on disk is not what was committed
    ├── SchemaError                 the catalogue's schema is not this version's
    ├── LockedError                 another process is writing
    ├── StorageError                the disk is full, or cannot be written
    ├── ServerError                 a server cannot be reached, or cannot answer now
    ├── WorkerError                 a process that this one needs died, or cannot be started
    └── DependencyError             an optional package is missing

A message says what happened, with both values, and what to do next.
"""

from __future__ import annotations

import re

_USER = re.compile(r"\w://[^\s:/@]*:")  # of a URL; the password follows, up to the last @
_PASSWORD = re.compile(r"(?P<kept>\b\w*(?:password|passwd|pwd)=)[^\s&'\")]+", re.IGNORECASE)
_PLAIN = "\xa0\u3000\u200c\u200d"  # spaces, and what joins letters: no commands to a terminal


def one_line(text: str) -> str:
    """Returns a message on one line: line breaks become spaces, other control characters escapes.

    What is in it may come from a file, a server or another package.
    """
    return escaped(" ".join(filter(None, map(str.strip, masked(text).splitlines()))))


def escaped(text: str, plain: str = _PLAIN) -> str:
    """Returns a text in which no character commands a terminal; those of `plain` stay."""
    return "".join(c if c.isprintable() or c in plain else ascii(c)[1:-1] for c in text)


def brief(value: object, most: int = 200) -> str:
    """Returns a name or an error for a message, on one line of at most `most` characters.

    Line breaks of a name are escaped: they are a part of it. An error without a message is told by
    its kind, one of a key that is not there by the key.
    """
    if isinstance(value, KeyError):
        value = LookupError(f"{value} is missing")
    if isinstance(value, BaseException):
        text = one_line(str(value)) or type(value).__name__
    else:
        text = escaped(str(value))
    return text if len(text) <= most else f"{text[:most]}…"


def masked(text: str) -> str:
    """Returns a text in which the passwords of URLs are asterisks."""
    if "://" in text:
        text = re.sub(r"\S+", lambda word: _masked_url(word[0]), text)
    return _PASSWORD.sub(r"\g<kept>***", text)


def _masked_url(word: str) -> str:
    user, end = _USER.search(word), word.rfind("@")
    return word if user is None or end < user.end() else word[: user.end()] + "***" + word[end:]


class ForvalueError(Exception):
    """Base of every error that a caller may want to catch. As text it is one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(ForvalueError):
    """A file, row or option that cannot be used as given."""


class RowError(InputError):
    """One row of the input, named by where it stands (`file:line`)."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.source, self.reason)  # from one process to another


class KeyConflictError(ForvalueError):
    """A key that the index or the input holds already, with other content."""


class ModelError(ForvalueError):
    """A model that cannot be loaded, whose head is not understood, or that gives NaN."""


class UnreadableRowError(RowError, ModelError):
    """One row whose forward pass gives NaN, or whose vector cannot be stored."""


class IndexMissingError(ForvalueError):
    """There is no index in the directory, or there is one where none may be."""


class FingerprintError(ForvalueError):
    """The index was made with another model, tokenizer or setting."""


class CorruptIndexError(ForvalueError):
    """A segment or the catalogue differs from what was committed."""


class SchemaError(ForvalueError):
    """The catalogue was written by another version of the schema."""


class LockedError(ForvalueError):
    """Another process holds the index for writing."""


class StorageError(ForvalueError):
    """The disk is full, or a file cannot be written."""


class ServerError(ForvalueError):
    """A server cannot be reached, or cannot answer now."""


class WorkerError(ForvalueError):
    """A process that this one needs died, or cannot be started."""


class DependencyError(ForvalueError):
    """An optional package is not installed."""


NO_ROOM = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "_ALLOC_FAILED",
    "CUDA error: out of memory",
    "can't start new thread",  # for which there is no memory, or no right
)
"""What is in the message of a RuntimeError that means that there is no memory."""


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error, whoever raised it, means that there is no memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_ROOM)
