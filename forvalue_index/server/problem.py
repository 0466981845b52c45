"""What goes wrong for a client: a status and one sentence, without a path of this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from forvalue_index.config import ModelConfig
from forvalue_index.errors import (
    ForvalueError,
    IndexMissingError,
    InputError,
    KeyConflictError,
    LockedError,
    brief,
    out_of_memory,
)
from forvalue_index.index import InfluenceIndex

log = logging.getLogger(__name__)

LONGEST = 500  # characters of a sentence


class HttpError(Exception):
    """An answer of 4xx or 5xx: its status and the sentence that says why."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def to_json(self) -> dict[str, str]:
        """Returns the body of the answer."""
        return {"error": self.sentence}


class Names:
    """Takes the places of an index and its model out of what clients are told."""

    def __init__(self, index: InfluenceIndex) -> None:
        model = index.config.model
        places = [index.directory, index.directory.absolute(), index.directory.resolve()]
        named = {str(place): "the index" for place in places}
        named |= {place: self.of(place) for place in _local(model)}
        self._named = sorted(named.items(), key=lambda pair: -len(pair[0]))

    @staticmethod
    def of(model: str) -> str:
        """Returns how a model is named to clients: a folder without what it is in."""
        return Path(model).name if _is_local(model) else model

    def without_places(self, text: str) -> str:
        """Returns a text that names neither the index's place nor the model's."""
        for place, name in self._named:
            text = text.replace(place, name)
        return text

    def problem(self, error: Exception) -> HttpError:
        """Returns what a client is told of an error; if it is not the client's, it is logged."""
        if isinstance(error, HttpError):
            return error
        if isinstance(error, InputError):
            return HttpError(422, brief(self.without_places(str(error)), LONGEST))
        if isinstance(error, KeyConflictError):
            return HttpError(409, brief(self.without_places(str(error)), LONGEST))
        if isinstance(error, IndexMissingError):
            log.error("%s", error)
            return HttpError(503, brief(self.without_places(str(error)), LONGEST))
        if isinstance(error, LockedError):
            return HttpError(503, "another process is writing to the index: try again later", 5)
        if out_of_memory(error):
            log.error("a request needs more memory than there is: %s", error)
            return HttpError(503, "there is not enough memory for this request: ask for less", 30)
        kind = type(error).__name__
        if isinstance(error, ForvalueError):
            log.error("%s: %s", kind, error)
        else:
            log.error("a request failed", exc_info=error)
        return HttpError(500, f"the index cannot answer this ({kind}): its server's log says why")


def _local(model: ModelConfig) -> Sequence[str]:
    return [place for place in (model.name, *model.adapters) if _is_local(place)]


def _is_local(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith(".") or Path(name).exists()
