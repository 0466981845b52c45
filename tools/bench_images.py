"""Mislabelled images: are training images with a wrong caption found (the mislabel study)?

A part of the images is set aside and trusted. Of the rest a share gets the caption of another
class. Each method values the rows against the trusted ones of the class that they are said to be
of; AUC is the chance that a wrong row is valued below a right one. With --train the model first
learns the partly wrong captions; without, it stays as it is.

    python tools/bench_images.py --model MODEL --data FOLDER [--share 0.2 --seeds 3]

FOLDER holds images and metadata.jsonl: file_name and caption, one caption for each class. A row is
never held against the class that it really is of: its caption alone would then give it away.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from forvalue_index.analysis.evaluate.mislabel import mislabel
from forvalue_index.config import FormatConfig, ModelConfig, TrainConfig, VectorConfig
from forvalue_index.data.sources import open_rows
from forvalue_index.model.language_model import load_model
from forvalue_index.records import Row


def rows_of(folder: Path, prompt: str) -> list[Row]:
    """Returns the images with their captions, as rows."""
    return [
        {
            "prompt": prompt,
            "response": row["caption"],
            "image": str(folder / row["file_name"]),
        }
        for _, row in open_rows(folder / "metadata.jsonl")
    ]


@click.command()
@click.option("--model", required=True, help="Folder of a vision-language model.")
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", default="<s><image>", show_default=True, help="Stands before captions.")
@click.option(
    "--against",
    type=click.Choice(["claimed", "all"]),
    default="claimed",
    show_default=True,
    help="Trusted rows that a row is held against: of its own caption, or all.",
)
@click.option("--share", default=0.2, show_default=True, help="Of the captions, made wrong.")
@click.option("--trusted", default=0.1, show_default=True, help="Of the images, set aside.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--recipe", default=VectorConfig().recipe, show_default=True)
@click.option("--exact", is_flag=True, help="Also the exact forms.")
@click.option("--train", "epochs", type=int, help="Epochs of fine-tuning on the wrong captions.")
@click.option("--json", "as_json", is_flag=True)
def main(
    model: str,
    data: Path,
    prompt: str,
    against: str,
    share: float,
    trusted: float,
    seeds: int,
    recipe: str,
    exact: bool,
    epochs: int | None,
    as_json: bool,
) -> None:
    """Prints how well each method finds wrong captions."""
    start = time.perf_counter()
    found = mislabel(
        load_model(ModelConfig(model)),
        rows_of(data, prompt),
        FormatConfig(image_field="image"),
        class_field="response" if against == "claimed" else None,
        share=share,
        trusted=trusted,
        seeds=seeds,
        train=None if epochs is None else TrainConfig(epochs=epochs),
        vector=VectorConfig(recipe=recipe),
        exact=exact,
    )
    if as_json:
        print(json.dumps(asdict(found)))
        return
    console = Console()
    table = Table(
        title=f"{found.wrong.mean:.0f} of {found.rows} captions wrong, {found.trusted} trusted",
        title_justify="left",
    )
    for column in ("method", "AUC", "precision"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in found.methods.items():
        figures = (f"{figure.mean:.4f} ± {figure.sd:.3f}" for figure in (row.auc, row.precision))
        table.add_row(name, *figures)
    console.print(table)
    console.print(
        f"against {against}, recipe {recipe}, {seeds} seeds (±: their spread), "
        f"{time.perf_counter() - start:.0f} s; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
