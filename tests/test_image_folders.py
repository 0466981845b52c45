"""An index that names images: its own user's are read, those that somebody else names are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers import tiny_vision
from helpers.tiny_vision import index_of, png

from forvalue_index import FormatConfig, InfluenceIndex, picture
from forvalue_index.cli import main
from forvalue_index.data.images import settle
from forvalue_index.errors import ForvalueError, RowError
from forvalue_index.picture import HASH, digest_of
from forvalue_index.server.problem import HttpError
from forvalue_index.server.reading import Reader
from forvalue_index.system import image_folders

ASKED = {"prompt": "what?", "response": " it"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.save(tmp_path_factory.mktemp("model"), "llava")


@pytest.fixture
def somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the rest of a test run as somebody else, in a new process."""

    def become(name: str) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
        monkeypatch.setattr(image_folders, "_given", set())
        monkeypatch.setattr(image_folders, "_listed", set())

    become("maker")
    return become


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(6):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(i))
        rows.append(ASKED | {"id": f"r{i}", "image": f"photos/{i}.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


READING: dict[str, Callable[[InfluenceIndex], Any]] = {
    "query": lambda index: index.query(ASKED, k=2, exact=True),
    "explain": lambda index: index.explain(ASKED, "r1"),
    "contributions": lambda index: index.contributions(ASKED, index.query(ASKED, k=1)),
    "stored row": lambda index: index.query(index.get("r1").row),
    "influence": lambda index: index.influence(
        index.samples(ASKED), index.training_samples([index.get("r1").id])
    ),
    "update": lambda index: index.add([index.get("r1").row | {"response": " a"}], update=True),
}
NOT_READING: dict[str, Callable[[InfluenceIndex], Any]] = {
    "query": lambda index: index.query(ASKED, k=2),
    "list": lambda index: list(index.rows()),
    "info": lambda index: index.info(),
    "verify": lambda index: index.verify(),
    "search": lambda index: index.search("it"),
    "compact": lambda index: index.compact(),
}


def opened_under(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Returns the list to which the images that are opened in a folder will be added."""
    found, before = list[Path](), picture.open_regular

    def opened(path: Path) -> Any:
        if path.resolve().is_relative_to(folder):
            found.append(path)
        return before(path)

    monkeypatch.setattr(picture, "open_regular", opened)
    return found


def test_images_of_a_foreign_index_are_not_read_unless_their_folder_is_named(
    data: Path,
    model: Path,
    somebody: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photos = data.parent / "photos"
    index_of(data.parent / "my.index", data, model).close()
    somebody("else")
    opened = opened_under(photos, monkeypatch)
    with InfluenceIndex.open(data.parent / "my.index") as index:
        for verb in NOT_READING.values():
            verb(index)
        for name, verb in READING.items():
            with pytest.raises(ForvalueError, match=r"photos/.*set FORVALUE_IMAGES to it"):
                verb(index)
                pytest.fail(name)
        with pytest.raises(HttpError, match="not this server's to read"):
            Reader(index).picture("r1", 0)
        assert opened == []
        monkeypatch.setenv("FORVALUE_IMAGES", f"{data.parent / 'other'}:{data.parent}")
        for verb in READING.values():
            verb(index)
        assert Reader(index).picture("r2", 0).startswith(b"\x89PNG")
        assert {path.name for path in opened} >= {"1.png", "2.png"}
    assert not (data.parent / "else" / "forvalue" / "images").exists()  # named, not remembered


def test_images_of_ones_own_index_are_read_by_another_process(
    data: Path, model: Path, somebody: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(data.parent / "my.index", data, model).close()
    kept = data.parent / "maker" / "forvalue" / "images"
    assert kept.read_text() == f"{data.parent / 'photos'}\n" and kept.stat().st_mode & 0o77 == 0
    somebody("maker")  # in a new process
    with InfluenceIndex.open(data.parent / "my.index") as index:
        for verb in READING.values():
            verb(index)
        assert Reader(index).picture("r1", 0).startswith(b"\x89PNG")


def test_where_nothing_can_be_remembered_a_process_reads_what_it_indexed(
    data: Path, model: Path, somebody: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (data.parent / "file").write_text("")
    somebody("file/config")
    with index_of(data.parent / "my.index", data, model) as index:
        assert index.query(ASKED, k=2, exact=True)


@pytest.mark.parametrize("kind", ["file", "link", "folder link", "up", "relative", "url", "none"])
def test_a_path_that_leads_out_of_a_named_folder_is_not_read(
    kind: str, tmp_path: Path, somebody: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(png(1))
    (tmp_path / "named" / "a.png").symlink_to(tmp_path / "secret" / "a.png")
    (tmp_path / "named" / "in").symlink_to(tmp_path / "secret")
    monkeypatch.setenv("FORVALUE_IMAGES", str(tmp_path / "named"))
    monkeypatch.chdir(tmp_path / "secret")
    place = {
        "file": f"{tmp_path}/secret/a.png",
        "link": f"{tmp_path}/named/a.png",
        "folder link": f"{tmp_path}/named/in/a.png",
        "up": f"{tmp_path}/named/../secret/a.png",
        "relative": "a.png",
        "url": f"file://{tmp_path}/secret/a.png",
        "none": "/proc/self/mem",
    }[kind]
    kept = {HASH: digest_of(png(1)), "size": [40, 30], "path": place}
    opened = opened_under(Path("/"), monkeypatch)
    with pytest.raises(RowError, match="is outside of the index"):
        settle({"image": kept}, "row 1", FormatConfig(image_field="image"))
    with pytest.raises(RowError, match="is outside of the index"):
        picture.Picture.from_json(kept).require_named("row 1")
    assert opened == []


def test_what_is_not_there_is_told_as_what_may_not_be_read(
    tmp_path: Path, somebody: Callable[[str], None]
) -> None:
    (tmp_path / "there.png").write_bytes(png(1))
    reasons = set()
    for name in ("there.png", "nowhere.png"):
        kept = {HASH: digest_of(png(1)), "size": [40, 30], "path": str(tmp_path / name)}
        with pytest.raises(RowError) as error:
            settle({"image": kept}, "row 1", FormatConfig(image_field="image"))
        reasons.add(error.value.reason.replace(name, ""))
    assert len(reasons) == 1


def test_on_the_command_line_one_line_says_what_to_do(
    data: Path, model: Path, somebody: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(data.parent / "my.index", data, model).close()
    somebody("else")
    asked = ["query", "--index", str(data.parent / "my.index"), "--exact", "-k", "2"]
    asked += ["--prompt", "what?", "--response", " it"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert "set FORVALUE_IMAGES to it" in line
    monkeypatch.setenv("FORVALUE_IMAGES", str(data.parent / "photos"))
    assert CliRunner().invoke(main, asked).exit_code == 0
