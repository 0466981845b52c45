"""Images from the network, for those who allowed it: by HTTP alone, of bounded size and time."""

from __future__ import annotations

import http.client
import time
import urllib.request
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
)

from forvalue_index.errors import RowError, brief
from forvalue_index.picture import LARGEST_BYTES

SILENCE_SECONDS = 30  # in which nothing comes
ALL_SECONDS = 300  # for one image
PIECE = 1 << 16  # bytes that are read at a time

_HANDLERS = (
    ProxyHandler,
    HTTPHandler,
    HTTPSHandler,
    HTTPDefaultErrorHandler,
    HTTPRedirectHandler,
    HTTPErrorProcessor,
)
"""No FTP and no files, also where a server points to one."""


def fetch(url: str, source: str) -> bytes:
    """Returns what is at a URL.

    Raises:
        RowError: it cannot be fetched, is too large, or takes too long.
    """
    data, deadline = bytearray(), time.monotonic() + ALL_SECONDS
    try:
        with open_url(url) as answer:
            while piece := answer.read(PIECE):
                data += piece
                if len(data) > LARGEST_BYTES:
                    raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ValueError(f"it took more than {ALL_SECONDS} seconds")
            if getattr(answer, "length", None):  # of what was announced
                raise ValueError("it ended too early")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the answer as well
        raise RowError(source, f"image {brief(url)} cannot be fetched ({brief(error)})") from None
    return bytes(data)


def open_url(url: str) -> http.client.HTTPResponse:
    """Returns the answer of a server."""
    opener = OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "forvalue-index"})
    answer: http.client.HTTPResponse = opener.open(request, timeout=SILENCE_SECONDS)
    return answer
