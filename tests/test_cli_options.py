"""The options of all commands: a group is there as a whole or not at all, and declared once."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from forvalue_index import InfluenceIndex
from forvalue_index.analysis.evaluate.evaluation import Evaluation
from forvalue_index.cli import main

QUERY = {"--prompt", "--response", "--text", "--image", "--label", "--data"}
PART = {"--span", "--tokens"}
SEARCH = {"--opponents", "--metric", "--where", "--exact", "--candidates", "--flat"}
DATA = {"--split", "--subset", "--allow-remote"}
LOADING = {"--revision", "--task", "--adapter", "--adapter-weight", "--dtype"}
LOADING |= {"--trust-remote-code"}
FIELDS = {"--prompt-field", "--response-field", "--text-field", "--messages-field"}
FIELDS |= {"--image-field", "--label-field"}
FORMAT = {"--key-field", "--template", "--chat", "--chat-template", "--score", "--last-turn"}
FORMAT |= {"--add-eos", "--truncate", "--max-length"}

OWN = {
    *("--data", "--model", "--index", "-k", "--seed", "--prompt", "--image"),
    *("--output", "--html", "--epochs", "--share", "--recipe", "--class-field", "--budget"),
    *("--trusted", "--exact", "--metric", "--key", "--combine"),
}
"""Options that mean something else from one command to the other."""


def commands(group: click.Group = main, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands())


def options(command: click.Command) -> dict[str, click.Option]:
    found = [param for param in command.params if isinstance(param, click.Option)]
    return {option.opts[0]: option for option in found}


def having(name: str) -> set[str]:
    return {title for title, command in COMMANDS.items() if name in options(command)}


def whole(group: set[str], sign: str) -> set[str]:
    """The commands that have the option `sign`, each of which must have the group."""
    for title in (found := having(sign)):
        assert group <= options(COMMANDS[title]).keys(), title
    return found


def test_every_command_that_loads_a_model_by_name_has_all_options_of_a_model() -> None:
    assert whole(LOADING, "--revision") == {
        *("build", "learn", "preview", "evaluate mislabel", "evaluate lds", "evaluate removal"),
    }
    for name in LOADING - {"--trust-remote-code"}:
        assert having(name) == having("--revision")


def test_every_command_that_opens_an_index_for_its_model_says_how() -> None:
    named = having("--model") - having("--revision")
    assert named == having("--trust-remote-code") - having("--revision")
    assert named <= having("--device")
    assert named == {
        *("add", "query", "ask", "shell", "explain", "score", "audit", "select", "serve"),
        *("evaluate fidelity", "evaluate recall", "evaluate identify", "evaluate select"),
    }


def test_every_command_that_reads_data_has_all_options_of_data() -> None:
    reading = whole(DATA, "--split")
    assert reading == having("--data") | having("--trusted") | {"build", "learn", "add", "preview"}
    assert reading == having("--subset") == having("--allow-remote") - {"export", "remove"}


def test_every_command_that_takes_a_query_has_all_options_of_a_query() -> None:
    assert whole(QUERY | DATA | FIELDS | PART | SEARCH, "--response") == {"query", "explain"}
    assert whole(PART | SEARCH | {"--prompt", "--image", "--data"}, "--span") == {
        *("query", "explain", "ask")
    }


def test_the_fields_of_rows_come_together() -> None:
    assert whole(FIELDS, "--prompt-field") == whole(FIELDS, "--label-field")
    assert whole(FIELDS | FORMAT, "--key-field") == having("--revision")
    assert having("--prompt-field") == having("--split") - {"add", "ask"}


def test_tables_and_charts_are_printed_as_json_too() -> None:
    results = {"add", "build", "learn", "attach", "remove", "compact", "export", "migrate"}
    results |= {"verify", "demo", "serve", "push", "pull", "reshard", "shell"}
    assert having("--json") == COMMANDS.keys() - results


def described(option: click.Option) -> tuple[object, ...]:
    return option.help, str(option.type), option.metavar, option.multiple, repr(option.default)


@pytest.mark.parametrize("name", sorted({o for c in COMMANDS.values() for o in options(c)} - OWN))
def test_an_option_is_the_same_in_every_command(name: str) -> None:
    found = defaultdict(list)
    for title in having(name):
        found[described(options(COMMANDS[title])[name])].append(title)
    assert len(found) == 1, found


METHODS: dict[str, Callable[..., Any]] = {
    "score": InfluenceIndex.score,
    "audit": InfluenceIndex.audit,
    "select": InfluenceIndex.select,
    "evaluate fidelity": Evaluation.fidelity,
    "evaluate recall": Evaluation.recall,
    "evaluate identify": Evaluation.identify,
    "evaluate select": Evaluation.select,
}
INPUT = {"self", "data", "targets", "trusted", "format", "progress", "train"}
"""Parameters that are made of several options, or have none."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_options_of_its_command(name: str) -> None:
    parameters = inspect.signature(METHODS[name]).parameters
    found = {option.name: option for option in options(COMMANDS[name]).values()}
    assert parameters.keys() - INPUT, "there is something to compare"
    for key in parameters.keys() - INPUT:
        default = parameters[key].default
        if default not in (inspect.Parameter.empty, None, (), False):
            assert found[key].default == default, key
        assert key in found
