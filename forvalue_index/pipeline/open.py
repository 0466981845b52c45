"""How an index that is there is opened: its store, and a session that loads the model when needed.

It imports no library of models, so that what asks for rows only starts fast.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from forvalue_index.config import ModelConfig
from forvalue_index.errors import InputError
from forvalue_index.pipeline.session import Session
from forvalue_index.shards.store import open_store

if TYPE_CHECKING:
    from forvalue_index.model.language_model import LanguageModel

Model: TypeAlias = "str | Path | ModelConfig | LanguageModel"
"""A path, a hub id, how to read one, or a model that is loaded already."""


def open_session(
    directory: str | Path,
    model: Model | None,
    device: str | None,
    trust_remote_code: bool = False,
    partial: bool = False,
) -> Session:
    """Returns the session of an index that is there; see `InfluenceIndex.open`."""
    given = None if model is None else known(model)
    store = open_store(directory, partial=partial)
    settings = replace(store.config.model, trust_remote_code=trust_remote_code)
    if isinstance(model, str | Path):
        settings = replace(settings, name=str(model))
    elif isinstance(given, ModelConfig):
        settings = given
    session = Session(store, replace(store.config, model=settings), device)
    if isinstance(given, ModelConfig):
        session.named = given.name, *given.adapters
    elif given is not None:
        try:
            session.use(given, given=True)
        except BaseException:
            session.close()
            raise
    return session


def known(model: Model) -> ModelConfig | LanguageModel:
    """Returns a loaded model as it is, and a path or hub id as settings.

    Raises:
        InputError: it is something else.
    """
    if isinstance(model, str | Path):
        return ModelConfig(str(model))
    if isinstance(model, ModelConfig):
        return model
    from forvalue_index.model.language_model import LanguageModel

    if not isinstance(model, LanguageModel):
        raise InputError(
            f"a model is a path, a hub id, a ModelConfig, or what wrap_model(model, tokenizer) "
            f"returns, not {type(model).__name__}"
        )
    return model
