"""Figures in the pages: each table of them has a command, and the README's are those of the pages.

That commands and options in pages exist is checked in test_docs.py, and that a figure is what its
command prints by whoever runs it: most of them take minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"python tools/\w+\.py|forvalue [a-z]+ .*--")
FIGURE = re.compile(r"(?<![\w.])\d*\.\d+|(?<![\w.])\d[\d,]*(?= ?(%|ms|s|MiB|GB)\b)")
LINK = re.compile(r"\]\((docs/[\w-]+\.md)#[\w-]+\)")


def tables(page: Path) -> Iterator[tuple[int, str, list[str]]]:
    """The tables of a page: the line, the text of the section before it, and its rows."""
    before: list[str] = []
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            before = []
        begins = line.startswith("|") and not lines[number - 2].startswith("|")
        if begins:
            rows = []
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(row)
            yield number, "\n".join(before), rows
        before.append(line)


def is_measured(rows: list[str]) -> bool:
    """Whether a third of the cells or more hold a figure with a fraction or a unit."""
    cells = [cell for row in rows for cell in row.strip("|").split("|")]
    return 3 * sum(bool(FIGURE.search(cell)) for cell in cells) >= len(cells) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_of_figures_has_a_command_before_it(page: Path) -> None:
    for number, before, rows in tables(page):
        if is_measured(rows) and not all(LINK.search(row) for row in rows):
            assert COMMAND.search(before), f"{page.name}:{number}: which command prints this?"


def test_the_figures_of_the_readme_are_those_of_the_page_that_it_links() -> None:
    found = 0
    for _, _, rows in tables(ROOT / "README.md"):
        for row in filter(LINK.search, rows):
            page = (ROOT / LINK.search(row)[1]).read_text()  # type: ignore[index]
            for figure in FIGURE.finditer(row.strip("|").split("|")[-1]):
                found += 1
                assert figure[0] in page, f"{figure[0]} is not in the page of: {row}"
    assert found > 20


def test_a_table_without_a_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    table = "| a | b |\n|---|---|\n| .5 | 3.2 s |\n"
    page.write_text(f"# One\n\n`python tools/x.py` prints:\n\n{table}\n# Two\n\n{table}")
    [(_, first, rows), (number, second, _)] = tables(page)
    assert is_measured(rows) and COMMAND.search(first)
    assert (number, COMMAND.search(second)) == (11, None)
