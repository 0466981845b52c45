"""What a path given as a model is: a model, an adapter that names its base, or a GGUF file.

Nothing is fetched, and no code is run, because a file names it: the base of an adapter has to be on
this machine, and its own code is never run. What the user names is another matter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from transformers.utils.hub import cached_file

from forvalue_index.config import ModelConfig
from forvalue_index.errors import DependencyError, ModelError

log = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
LARGEST = 1 << 20  # bytes of an adapter's settings
GGUF = ".gguf"


@dataclass(frozen=True)
class Located:
    """Where the parts of a model are."""

    config: ModelConfig  # its name is that of a whole model
    tokenizer: str  # the folder or id that the tokenizer is read from
    settings: dict[str, Any]  # how a library reads what is at the name
    tokenizer_settings: dict[str, Any]  # likewise


def locate(config: ModelConfig) -> Located:
    """Returns where the parts of a model are.

    Raises:
        ModelError: the base of an adapter is not known or not here, or a folder holds several GGUF
            files.
        DependencyError: what reads GGUF files is not installed.
    """
    settings: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    named = settings
    if is_adapter(config.name):
        if config.adapters:
            raise ModelError(
                f"{config.name} is an adapter: give its base as --model, the adapter as --adapter"
            )
        base, revision = _base(config.name)
        settings = {"revision": revision, "trust_remote_code": False}
        config = replace(config, name=base, adapters=(config.name,))
    config, file = _gguf(config)
    if file is not None:
        settings = settings | {"gguf_file": file}
    _tell_of_the_hub(config.name, settings["revision"])
    for adapter in config.adapters:
        if _has_tokenizer(adapter):
            trusted = {"trust_remote_code": named["trust_remote_code"]}
            return Located(config, adapter, settings, trusted)
    return Located(config, config.name, settings, settings)


def _tell_of_the_hub(name: str, revision: str | None) -> None:
    """Logs that a model will be asked for on the hub, which is tried for a while."""
    if Path(name).exists() or not may_be_id(name) or constants.HF_HUB_OFFLINE:
        return
    if try_to_load_from_cache(name, "config.json", revision=revision) is None:
        log.warning("There is no folder %s here: asking for it at %s", name, constants.ENDPOINT)


def may_be_id(name: str) -> bool:
    """Returns whether a name has the form of an id on the hub."""
    try:
        try_to_load_from_cache(name, "config.json")
    except ValueError:
        return False
    return True


def is_adapter(name: str) -> bool:
    """Returns whether a folder holds nothing but an adapter."""
    folder = Path(name)
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def _base(adapter: str) -> tuple[str, str | None]:
    """Returns the folder and the revision of the model that an adapter was made for.

    Raises:
        ModelError: nobody knows, or it is not on this machine.
    """
    path = Path(adapter) / ADAPTER
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        values = json.loads(path.read_text())
        name, revision = values.get("base_model_name_or_path"), values.get("revision")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): get the adapter again") from None
    how = f"give its base as --model, and {adapter} as --adapter"
    if not isinstance(name, str) or not name:
        raise ModelError(f"{adapter} is an adapter: {how}")
    try:
        if Path(name).exists():
            return name, None
        revision = revision if isinstance(revision, str) else None
        return snapshot_download(name, revision=revision, local_files_only=True), None
    except (OSError, ValueError):  # it is not there, or is no id
        raise ModelError(
            f"{adapter} is an adapter of {name}, which is not on this machine: "
            f"if you know it, {how}"
        ) from None


def _gguf(config: ModelConfig) -> tuple[ModelConfig, str | None]:
    """Returns the folder of a model as settings, and the GGUF file in it that is read, if any."""
    path, file = Path(config.name), config.gguf_file
    if file is None and path.suffix.lower() == GGUF and path.is_file():
        config, file = replace(config, name=str(path.parent)), path.name
    if file is None and path.is_dir() and not (path / "config.json").is_file():
        files = sorted(item.name for item in path.iterdir() if item.suffix.lower() == GGUF)
        if len(files) > 1:
            raise ModelError(
                f"{config.name} holds {len(files)} GGUF files ({_some(files)}): choose one with "
                "--gguf-file"
            )
        file = files[0] if files else None
    if file is not None:
        lacking = [name for name in ("accelerate", "gguf") if find_spec(name) is None]
        if lacking:
            raise DependencyError(
                f'a GGUF file needs {" and ".join(lacking)}: pip install "forvalue-index[gguf]"'
            )
    return config, file


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _has_tokenizer(name: str) -> bool:
    """Returns whether an adapter, a folder or an id on the hub, comes with its tokenizer."""
    try:
        found = cached_file(
            name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError):  # there is no such adapter, which is said when it is read
        return False
    return found is not None
