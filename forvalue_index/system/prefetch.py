"""Items that are made ahead, in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def ahead(items: Iterable[T]) -> Generator[T]:
    """Yields items in order; the next is made in a thread while the last one is used.

    An error in making one is raised in its place. Close the iterator (`contextlib.closing`) where
    it may not be read to its end, so that the thread has ended when the work goes on.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item
