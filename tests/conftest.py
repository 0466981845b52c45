"""Tiny models and rows for every test; nothing is downloaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from helpers import postgres
from helpers.models import save_model
from hypothesis import HealthCheck, settings

# Whether the tests pass must not depend on chance, nor on how busy the machine is. Other examples
# than those of every run: --hypothesis-profile default --hypothesis-seed N.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")

_CONFIG = tempfile.TemporaryDirectory(prefix="config")
os.environ["XDG_CONFIG_HOME"] = _CONFIG.name  # the catalogues that a test names
_RUNTIME = tempfile.TemporaryDirectory(prefix="run")
os.environ["XDG_RUNTIME_DIR"] = _RUNTIME.name  # no server of the person who runs the tests

pytest_plugins = (
    "helpers.browser",
    "helpers.catalogs",
    "helpers.derived_data",
    "helpers.indexes",
)  # whose fixtures several files share


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk, as a user has it."""
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama", 0)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    return save_model(tmp_path_factory.mktemp("models") / "other", "llama", 1)


@pytest.fixture()
def rows() -> list[dict[str, Any]]:
    """Thirty rows of different lengths with a key and a field of metadata."""
    generator = torch.Generator().manual_seed(0)

    def word() -> str:
        length = int(torch.randint(1, 9, (1,), generator=generator))
        return "".join(
            chr(97 + int(c)) for c in torch.randint(0, 26, (length,), generator=generator)
        )

    return [
        {"id": f"row-{i}", "prompt": f"{word()} {word()}", "response": f" {word()}", "n": i}
        for i in range(30)
    ]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the person who runs the tests may change them."""
    for name in list(os.environ):
        if name.startswith(("FORVALUE_", "HF_TOKEN")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server that runs as long as the tests do."""
    reason = postgres.missing()
    if reason is not None:
        pytest.skip(reason)
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where the catalogue of a test is: once None (SQLite, by default), once an empty database."""
    if request.param == "sqlite":
        yield None
        return
    with postgres.database(request.getfixturevalue("postgres_server")) as url:
        yield url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Runs on the CPU what is not marked as for a GPU, also where there is one."""
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("gpu"):
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setattr(torch.cuda, "device_count", lambda: 0)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # to processes that a test starts
        return (yield)
