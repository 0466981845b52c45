"""Writes questions about functions and classes, each answered by its docstring, from what is here.

Sources of installed packages are parsed, never run. Doctests are left out and long docstrings end
after a paragraph, so that an answer has 60 to 250 words; of answers that begin alike (methods that
are written anew in each class) one is kept. The rows are in the order of a hash of their names: the
same packages give the same file, and its beginning is a draw from all of them.

    python tools/make_docs.py --output docs.jsonl
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

Row = dict[str, str]

PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sympy", "torch", "transformers")
FEWEST, MOST = 60, 250  # words of an answer
ALIKE = 12  # first words that no two answers share
PRIVATE = re.compile(r"_|tests?$|testing$|site-packages$|conftest|idlelib$|lib2to3$")
"""Of parts of a path or name: what nobody asks about."""


def installed(packages: Sequence[str]) -> dict[Path, Path]:
    """Returns the folders of Python's library and of packages -> where their modules' names begin.

    What is not installed is left out.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    parents = sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})
    found = {parent / name: parent for parent in parents for name in packages}
    return {stdlib: stdlib} | {root: parent for root, parent in found.items() if root.is_dir()}


def docs(roots: dict[Path, Path], count: int | None = None) -> list[Row]:
    """Returns `count` rows, or all there are, of the folders that `installed` returns."""
    rows: dict[str, Row] = {}
    for root, parent in roots.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(parent).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(PRIVATE.match(part) for part in parts):
                module = ".".join(parts)
                rows |= {row["name"]: row for row in documented(path.read_bytes(), module)}
    result, seen = list[Row](), set[tuple[str, ...]]()
    for row in sorted(rows.values(), key=lambda row: hashlib.sha256(row["name"].encode()).digest()):
        first = tuple(row["answer"].split()[:ALIKE])
        if first not in seen:
            seen.add(first)
            result.append(row)
    return result[:count]


def documented(source: bytes, module: str) -> Iterator[Row]:
    """Yields a row for each public function, class and method whose docstring is long enough."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in somebody else's texts
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # Python's library holds some on purpose
    yield from _within(tree, module, module)


def _within(parent: ast.Module | ast.ClassDef, name: str, module: str) -> Iterator[Row]:
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if PRIVATE.match(node.name):
            continue
        full = f"{name}.{node.name}"
        text = answer(ast.get_docstring(node) or "")
        if text is not None:
            own = full.removeprefix(f"{module}.")
            if isinstance(node, ast.ClassDef):
                question = f"What is the class {own} of {module} for?"
            else:
                arguments = ", ".join(argument.arg for argument in node.args.args)
                question = f"What does {own}({arguments}) of {module} do?"
            yield {"name": full, "question": question, "answer": text}
        if isinstance(node, ast.ClassDef):
            yield from _within(node, full, module)


def answer(docstring: str) -> str | None:
    """Returns the whole paragraphs that fit, without doctests; None: too few words."""
    parts, words = list[str](), 0
    for part in re.split(r"\n\s*\n", docstring.strip()):
        part = part.strip()
        if ">>>" in part or not part:
            continue
        words += len(part.split())
        if words > MOST:
            words -= len(part.split())
            break
        parts.append(part)
    return "\n\n".join(parts) if words >= FEWEST else None


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--package", "packages", multiple=True, default=PACKAGES, show_default=True)
@click.option("--rows", type=click.IntRange(1), help="At most.  [default: all]")
def main(output: Path, packages: tuple[str, ...], rows: int | None) -> None:
    """Write OUTPUT, with fields name, question and answer.

    Example: python tools/make_docs.py --output docs.jsonl --rows 5000
    """
    found = docs(installed(packages), rows)
    output.write_text("".join(json.dumps(row) + "\n" for row in found))
    click.echo(f"{len(found):,} rows in {output}")


if __name__ == "__main__":
    main()
