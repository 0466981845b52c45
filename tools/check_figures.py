"""Names the figures of the documentation that no command printed.

    python tools/check_figures.py README.md docs/*.md

What benchmarks print is kept in docs/results (`tools/report.py run`). A section of a page stands
for the results of the commands that it names, such as `tools/bench_real.py falsehoods` or `forvalue
evaluate lds`, and a line that links to a section of measurements.md for those of that section.
Figures are the numbers with a decimal point outside of code. One is right if a number that one of
these results printed rounds to it, as it is or in per cent. Sections that name no benchmark are
passed over.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
MEASUREMENTS = ROOT / "docs" / "measurements.md"
FIGURE = re.compile(r"(?<![\w.,])(?:\d[\d,]*)?\.\d+(?![\w.]*\d)")
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|(?<![\w.,])\.\d+")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
BENCHMARK = re.compile(r"tools/(\w+\.py(?: [a-z]+(?![\w./]))?)|(forvalue evaluate [a-z]+)")


def unprinted(page: Path) -> list[str]:
    """Returns the figures of a page that no result of their section printed."""
    measured = sections(MEASUREMENTS)
    found = []
    for title, text in sections(page).items():
        for line in _prose(text):
            linked = re.findall(r"\(\S*measurements\.md#([\w-]+)\)", line)
            named = benchmarks("\n".join(measured[name] for name in linked) or text)
            if named:
                figures = FIGURE.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", line))
                printed = _printed(named)
                missing = [each for each in figures if not is_printed(each, printed)]
                found += [f"{page.name}#{title}: {each}: {line.strip()}" for each in missing]
    return found


def sections(page: Path) -> dict[str, str]:
    """Returns the text below each heading of a page, by the name that links have for it."""
    text = FENCED.sub(lambda block: block[0].replace("\n#", "\n #"), page.read_text())
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    found: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        name = re.sub(r"[^\w-]+", "", title.lower().replace(" ", "-"))
        found[name] = found.get(name, "") + body
    return found


def benchmarks(text: str) -> set[str]:
    """Returns the benchmarks that a text or a command names, with the first word of their study."""
    found = BENCHMARK.findall(" ".join(text.replace("`", " ` ").split()))
    return {script or command for script, command in found}


def is_printed(figure: str, printed: list[float]) -> bool:
    """Returns whether a printed number rounds to a figure, as it is or in per cent."""
    value, half = float(figure.replace(",", "")), 0.501 * 10.0 ** -len(figure.partition(".")[2])
    return any(abs(number * by - value) <= half for number in printed for by in (1, 0.01, 100))


def _printed(named: set[str]) -> list[float]:
    """Returns all numbers that the kept results of some benchmarks hold."""
    kept = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    texts = [result["printed"] for result in kept if benchmarks(result["command"]) & named]
    return [float(each.replace(",", "")) for text in texts for each in NUMBER.findall(text)]


def _prose(text: str) -> Iterator[str]:
    """Yields the rows of tables, and the paragraphs, of a section without its blocks of code."""
    for paragraph in re.split(r"\n\s*\n", FENCED.sub("", text)):
        rows = [line for line in paragraph.splitlines() if line.startswith("|")]
        yield from rows or [" ".join(paragraph.split())]


def main() -> None:
    """Prints what is missing; the exit status says whether there is any."""
    missing = [line for name in sys.argv[1:] for line in unprinted(Path(name))]
    print(*missing, sep="\n")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
