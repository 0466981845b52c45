"""`forvalue evaluate`: how good an index is, measured against what is known."""

from __future__ import annotations

import click

from forvalue_index.cli.evaluate import finding, trials


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


for command in (
    *(finding.fidelity, finding.recall, finding.identify),
    *(trials.mislabel, trials.select, trials.lds),
):
    evaluate.add_command(command)
