"""Queries that wait for the model are encoded together, and one that is bad spoils no other."""

from __future__ import annotations

import asyncio
import threading
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np

from forvalue_index.errors import RowError
from forvalue_index.server.batch import LARGEST, ModelLane


class Caller:
    """Stands for a request whose client stays."""

    client = SimpleNamespace(host="one")

    async def is_disconnected(self) -> bool:
        return False


class Model:
    """Stands for the model: a vector holds the number that a sample is; a negative one is bad."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        self.free = threading.Event()

    def encode(self, samples: list[Any]) -> Any:
        self.free.wait(20)
        self.passes.append(list(samples))
        if any(sample < 0 for sample in samples):
            raise RowError("row 1", "the model makes nothing of it")
        return np.array([[float(sample)] for sample in samples], np.float32)


def answers(model: Model, prepared: list[Any], seconds: float = 0.3) -> list[Any]:
    """What the queries get that come while the model works on the first of them."""
    lane = ModelLane(model.encode)
    request: Any = Caller()

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.create_task(lane.encode(request, prepare)) for prepare in prepared]
        asyncio.get_running_loop().call_later(seconds, model.free.set)
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        return asyncio.run(all_of_them())
    finally:
        lane.close()


def samples(*numbers: int) -> list[Any]:
    return [lambda number=number: number for number in numbers]


def test_those_that_wait_share_a_pass_and_each_gets_its_own_vector() -> None:
    model = Model()
    found = answers(model, samples(*range(40)))
    assert [(sample, vectors.tolist()) for sample, vectors in found] == [
        (number, [[number]]) for number in range(40)
    ]
    assert sorted(chain(*model.passes)) == list(range(40))  # each was encoded once
    assert len(model.passes) <= 4 and max(map(len, model.passes)) == LARGEST


def test_a_bad_query_spoils_no_other() -> None:
    def wrong() -> Any:
        raise ValueError("it cannot be read")

    model = Model()
    found = answers(model, [*samples(1, 2), wrong, *samples(-3, 4)])
    assert [answer[0] for answer in (found[0], found[1], found[4])] == [1, 2, 4]
    assert isinstance(found[2], ValueError) and isinstance(found[3], RowError)


def test_who_goes_away_is_not_encoded() -> None:
    class Gone(Caller):
        async def is_disconnected(self) -> bool:
            return True

    model, gone, stays = Model(), Gone(), Caller()
    lane = ModelLane(model.encode)

    async def both() -> Any:
        first = asyncio.create_task(lane.encode(stays, lambda: 1))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        lost = asyncio.create_task(lane.encode(gone, lambda: 2))  # type: ignore[arg-type]
        last = asyncio.create_task(lane.encode(stays, lambda: 3))  # type: ignore[arg-type]
        asyncio.get_running_loop().call_later(1, model.free.set)
        return await asyncio.gather(first, lost, last, return_exceptions=True)

    first, lost, last = asyncio.run(both())
    lane.close()
    assert (first[0], type(lost).__name__, last[0]) == (1, "GoneError", 3)
    assert sorted(chain(*model.passes)) == [1, 3]
