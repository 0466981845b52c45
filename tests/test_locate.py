"""Names of models that are no folder here: what is said, and when."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from forvalue_index import ModelConfig
from forvalue_index.errors import ModelError
from forvalue_index.model import locate
from forvalue_index.model.load import load_pretrained

ASKING = "There is no folder nosuch/model here: asking for it at https://"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the hub could be asked; nothing that is called here does."""
    monkeypatch.setattr(locate.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(locate.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("online")
def test_before_the_hub_is_asked_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate.locate(ModelConfig("nosuch/model"))
    [record] = caplog.records
    assert ASKING in record.getMessage() and record.levelno == logging.WARNING
    caplog.clear()
    (tmp_path / "here").mkdir()
    locate.locate(ModelConfig("here"))
    monkeypatch.setattr(locate, "try_to_load_from_cache", lambda *_, **__: "config.json")
    locate.locate(ModelConfig("nosuch/model"))
    monkeypatch.undo()
    locate.locate(ModelConfig("nosuch/model"))  # offline
    assert not caplog.records


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", ["a/b/c", "./model", "/no/model", "my model", "~/model", "a--b"])
def test_a_name_that_cannot_be_an_id_fails_at_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match="there is no such folder; give the folder of a whole"):
        load_pretrained(ModelConfig(name), None)
    assert not caplog.records
