"""docs/errors.md is what tools/make_errors.py makes, and what it shows is what commands say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that read damaged files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as it is made now."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        import make_errors

        return make_errors.page(tmp_path_factory.mktemp("errors").resolve())


def test_the_page_of_errors_is_current(made: str) -> None:
    assert made == PAGE.read_text(), "python tools/make_errors.py"


def test_the_page_names_no_folder_of_this_machine(made: str) -> None:
    for part in ("/tmp/", "/home/", sys.prefix, str(ROOT)):
        assert part not in made


def test_every_kind_of_error_has_its_section() -> None:
    from forvalue_index import errors

    page = PAGE.read_text()
    for name in errors.__doc__.split("ForvalueError\n")[1].split() if errors.__doc__ else []:
        if name.endswith("Error"):
            assert f"\n## {name}\n" in page
