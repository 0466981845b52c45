"""A trainer's callback that builds an index of what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from forvalue_index.errors import InputError
from forvalue_index.index import InfluenceIndex
from forvalue_index.pipeline.add import AddReport


class IndexCallback(TrainerCallback):
    """Builds an index at the end of training: `trainer.add_callback(IndexCallback(trainer, dir))`.

    With `checkpoints` the index is of all checkpoints that were saved, over which influences add
    up. These are adapters (PEFT) on one base; `save_total_limit` must not remove any of them.
    """

    def __init__(
        self, trainer: Any, directory: str | Path, *, checkpoints: bool = False, **settings: Any
    ) -> None:
        """Takes what `InfluenceIndex.from_trainer` does."""
        self.report: AddReport | None = None  # of the build, when it is done
        self._trainer = trainer
        self._directory = directory
        self._wanted = checkpoints
        self._saved: list[Path] = []
        self._settings = settings

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes the checkpoint that was just saved."""
        folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if folder not in self._saved:
            self._saved.append(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Builds the index, in the first of several processes.

        Raises:
            InputError: checkpoints are wanted, and there is none, or one is gone.
        """
        if not state.is_world_process_zero:
            return
        folders = self._saved if self._wanted else []
        gone = [folder for folder in folders if not folder.is_dir()]
        if self._wanted and (gone or not folders):
            what = f"{gone[0]} is gone: raise" if gone else "no checkpoint was saved: set"
            option = "save_total_limit" if gone else "save_strategy and save_steps"
            raise InputError(f"{what} the trainer's {option}, or leave out checkpoints=True")
        index, self.report = InfluenceIndex.from_trainer(
            self._trainer, self._directory, checkpoints=folders, **self._settings
        )
        index.close()
