"""`forvalue evaluate`: how good an index is, measured against what is known."""

from __future__ import annotations

import click

from forvalue_index.cli.evaluate.fidelity import fidelity
from forvalue_index.cli.evaluate.identify import identify
from forvalue_index.cli.evaluate.lds import lds
from forvalue_index.cli.evaluate.mislabel import mislabel
from forvalue_index.cli.evaluate.recall import recall
from forvalue_index.cli.evaluate.removal import removal
from forvalue_index.cli.evaluate.select import select


@click.group()
def evaluate() -> None:
    """Measure how good an index's answers are.

    \b
    Example:
      forvalue evaluate fidelity --index my.index --data questions.jsonl
      forvalue evaluate recall --index my.index --data questions.jsonl --gold-field fact
      forvalue evaluate lds --model base-model --data train.jsonl --targets test.jsonl \\
        --work runs
    """


for command in (fidelity, recall, identify, mislabel, select, lds, removal):
    evaluate.add_command(command)
