"""Rows as a file to download: JSON Lines, CSV or Parquet, as the commands write them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from forvalue_index.data.writers import write_rows
from forvalue_index.records import Row
from forvalue_index.system.temporary import keeping

Form = Literal["jsonl", "csv", "parquet"]
KINDS = {
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


def download(rows: Iterable[Row], form: Form, name: str) -> Response:
    """Returns rows as a file called `name`, which is removed once it is sent or not wanted.

    Raises:
        DependencyError: the library for Parquet is not installed.
        StorageError: there is no room for it.
    """
    with keeping("a file to download"):
        folder = Path(tempfile.mkdtemp(prefix="forvalue-"))
    file = folder / f"{name}.{form}"
    try:
        write_rows(file, rows)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    response = FileResponse(file, media_type=KINDS[form], filename=file.name)
    # Also where nobody takes the answer, since the client has gone away meanwhile.
    remove = weakref.finalize(response, shutil.rmtree, folder, ignore_errors=True)
    response.background = BackgroundTask(remove)
    return response
