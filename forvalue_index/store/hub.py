"""An index on the Hugging Face hub: a dataset repository that holds a copy of it and a card.

Only files that an index has are ever fetched, by plain names. What comes from the hub is somebody
else's: it is opened as any index is, and its catalogue and segments are checked where they are.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCardData,
    HfApi,
    constants,
)
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from forvalue_index.errors import InputError, brief
from forvalue_index.records import Fidelity
from forvalue_index.store.copy import copy
from forvalue_index.store.layout import CATALOG, require_empty, storing
from forvalue_index.store.store import Store
from forvalue_index.system.files import NO_ROOM

CARD = "README.md"
PARTIAL = ".part"
_OWN = re.compile(
    r"catalog\.db|README\.md|vectoriser-[0-9a-f]{16}\.safetensors|segments/[0-9][0-9-]*\.faiss"
    r"|derived/[0-9][0-9-]*\.states"
)
_STALE = re.compile(r"vectoriser-.*\.safetensors|segments/.*\.faiss|derived/.*|catalog\.db")
_KIND = "dataset"
_ADVICE = re.compile(r"\s*For more information check: \S+\s*")  # of the client, on what 401 means


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is on the hub now."""

    url: str  # of the commit
    samples: int
    rows: bool  # whether their rows are there, too


def push(
    store: Store,
    repo: str,
    *,
    rows: bool = True,
    license: str = "unknown",
    base_model: str | None = None,
    public: bool = False,
    token: str | None = None,
) -> Pushed:
    """Puts a copy of an index on the hub, in one commit, and returns what is there now.

    Files that are there already, also those of a push that was interrupted, are not sent again.

    Args:
        store: of the index.
        repo: "organisation/name"; a private dataset repository that is made if it is not there.
        rows: without them, nobody who pulls it can read them, ask for words, or for exact scores.
        license: of the rows, as the hub names licences.
        base_model: the hub id of the model, if the index names a folder of this machine.
        public: make a repository that everybody can read, if it is not there yet.
        token: of the hub; default: the one that `hf auth login` keeps.

    Raises:
        InputError: the hub cannot be reached, or refuses.
        IndexMissingError: the index is empty.
        CorruptIndexError: a segment is not what was committed.
        StorageError: there is no room for a copy.
    """
    with tempfile.TemporaryDirectory(prefix="forvalue-push-") as folder:
        made = Path(folder) / "index"
        copy(store, made, rows=rows, model=base_model)
        info = _info(made)
        names = sorted(name for name in _names(made) if _OWN.fullmatch(name))
        (made / CARD).write_text(_card(info, repo, rows, license))
        with _asking(repo):
            api = HfApi(token=token)
            api.create_repo(repo, repo_type=_KIND, private=not public, exist_ok=True)
            there = api.list_repo_files(repo, repo_type=_KIND)
            operations: list[Any] = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=made / name)
                for name in [*names, CARD]
            ]
            stale = [name for name in there if _STALE.fullmatch(name) and name not in names]
            operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
            message = f"forvalue push: {info['samples']:,} samples"
            done = api.create_commit(repo, operations, commit_message=message, repo_type=_KIND)
    return Pushed(str(done.commit_url), info["samples"], rows)


def pull(
    repo: str,
    directory: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Returns the directory of an index of the hub, after fetching what is not there yet.

    It is fetched beside the directory, under a name that ends in ".part", where an interrupted call
    continues, and gets its name when it is whole.

    Args:
        repo: "organisation/name", a dataset repository.
        directory: not there yet, or empty; default: one for each commit, in the hub's cache.
        revision: a branch, a tag or a commit; default: the newest.
        token: of the hub; default: the one that `hf auth login` keeps.

    Raises:
        InputError: the hub cannot be reached, there is no such repository, or no index in it.
        IndexMissingError: the directory is not empty.
        StorageError: the disk is full.
    """
    if directory is not None:
        require_empty(Path(directory))
    with _asking(repo):
        api = HfApi(token=token)
        info = api.dataset_info(repo, revision=revision)
    commit = str(info.sha)
    names = [item.rfilename for item in info.siblings or [] if _OWN.fullmatch(item.rfilename)]
    if CATALOG not in names or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise InputError(
            f"{repo} on {constants.ENDPOINT} holds no index: it has no {CATALOG}; name a dataset "
            "repository that forvalue push made"
        )
    kept = Path(constants.HF_HOME) / "forvalue" / repo.replace("/", "--") / commit
    target = kept if directory is None else Path(directory)
    if directory is None and target.exists():
        return target
    partial = target.with_name(f"{target.name}{PARTIAL}")
    with storing(target):
        partial.mkdir(parents=True, exist_ok=True)
    with _asking(repo):
        api.snapshot_download(
            repo, repo_type=_KIND, revision=commit, local_dir=partial, allow_patterns=names
        )
    with storing(target):
        _clear(partial, {*names})
        if target.exists():
            target.rmdir()
        partial.rename(target)
    return target


def _clear(folder: Path, names: set[str]) -> None:
    """Deletes what does not belong to the commit: the client's notes, and files of another one."""
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for name in _names(folder) - names:
        (folder / name).unlink()


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _info(directory: Path) -> dict[str, Any]:
    store = Store.open(directory)
    try:
        return store.info()
    finally:
        store.close()


def _card(info: dict[str, Any], repo: str, rows: bool, license: str) -> str:
    """Returns the page of the repository: what is in it, how true it is, and how to use it."""
    config, fidelity = info["config"], info["fidelity"]
    format, vector, model = config["format"], config["vector"], info["model"]
    named = format["text_field"] or format["messages_field"]
    fields = named or f"{format['prompt_field']}, {format['response_field']}"
    values = {
        "model": f"{model}, revision {config['model']['revision'] or 'default'}",
        "samples": f"{info['samples']:,}",
        "fields that are read": fields,
        "rows": "included" if rows else "left out: keys, figures and vectors only",
        "vectors": f"{info['dim']:,} numbers of {info['bits']} bits, recipe {vector['recipe']}",
        "fidelity": str(Fidelity(**fidelity)) if fidelity else "not measured",
    }
    data = DatasetCardData(
        license=license,
        pretty_name=repo.rpartition("/")[2],
        tags=["forvalue", "data-attribution", "influence-functions"],
        viewer=False,
        **({"base_model": model} if "/" in model else {}),
    )
    lines = "\n".join(f"| {name} | {_cell(value)} |" for name, value in values.items())
    body = (
        f"# Influence index of {info['samples']:,} training samples\n\n"
        "Made with [forvalue_index](https://pypi.org/project/forvalue-index/): it answers which "
        f"of these samples drove an output of the model.\n\n| | |\n|---|---|\n{lines}\n\n"
        f"```python\nfrom forvalue_index import InfluenceIndex\n\n"
        f'index = InfluenceIndex.from_hub("{repo}", model={model!r})\n'
        'hits = index.query({"prompt": "...", "response": "..."})\n```\n'
    )
    return f"---\n{data}\n---\n\n{body}"


def _cell(text: str) -> str:
    return brief(text).replace("|", "\\|")


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Translates what the hub's client raises into this package's errors."""
    try:
        yield
    except HFValidationError:
        raise InputError(
            f"{brief(repo)} names no repository of a hub: give NAME or ORGANISATION/NAME"
        ) from None
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{constants.ENDPOINT} has no dataset repository {repo} that you may see: correct the "
            "name, or log in with `hf auth login`"
        ) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            with storing(Path(error.filename or tempfile.gettempdir())):
                raise
        raise InputError(_refused(repo, error)) from error
    except Exception as error:  # of the client, or of what it asks the network with
        raise InputError(_refused(repo, error)) from error


def _refused(repo: str, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, RuntimeError) else None  # of a file that was sent
    parts = [_ADVICE.sub(" ", str(part)) for part in (error, cause) if part is not None]
    said = ": ".join(brief(part, 300).removesuffix(".") for part in parts)
    return (
        f"{repo} on {constants.ENDPOINT}: {said}; correct the name, log in with "
        "`hf auth login`, or look at the network, and run the command again: what was sent or "
        "fetched is not sent or fetched again"
    )
