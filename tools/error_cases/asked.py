"""What is asked of an index or a model that cannot be answered or done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from error_cases.case import Case, python
from error_cases.models import ROWS, adapter, bert, edited, llama, lora, pair, saved
from error_cases.rows import BUILD, PAIR

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.analysis.evaluate.lds import lds
from forvalue_index.analysis.evaluate.mislabel import mislabel
from forvalue_index.analysis.evaluate.removal import removal
from forvalue_index.analysis.evaluate.subsets import SubsetConfig
from forvalue_index.data.rows import Outcome, Rows
from forvalue_index.model.generation import complete
from forvalue_index.vectors.codes import Codes

POSTGRES = "--catalog postgresql+psycopg://user@host/name"
FOUR: dict[str, str | bytes] = {
    "rows.jsonl": "".join(json.dumps(PAIR | {"prompt": f"Who {i}?"}) + "\n" for i in range(4))
}
STUDIES = {"lds": lds, "mislabel": mislabel, "removal": removal, "SubsetConfig": SubsetConfig,
           "complete": complete, "Codes": Codes}  # fmt: skip


class _Moving(Rows):
    """Rows that are others each time they are read."""

    def __init__(self, *times: list[dict[str, Any]]) -> None:
        self._times = iter(times)

    def outcomes(self) -> Iterator[Outcome]:
        for number, row in enumerate(next(self._times, []), start=1):
            yield f"row {number}", row


def _moving(run: str, told: str, *times: list[dict[str, Any]]) -> Case:
    return python(run, known=lambda: {"moving": _Moving(*times)}, told=f"moving has {told}")


def _classifier() -> dict[str, Any]:
    row = {"text": "a", "topic": "LABEL_0"}
    format = FormatConfig(text_field="text", label_field="topic")
    return {"index": InfluenceIndex.build("new", [row], "model", format=format)[0], "row": row}


def _of_class(run: str) -> Case:
    told = "index is one of a classifier, and row one of its rows"
    return python(run, known=_classifier, before=saved(bert), told=told)


def _kept(folder: Path) -> None:
    rows, vector = [PAIR | {"keep": i} for i in range(2)], VectorConfig(dim=16, sketch_dim=64)
    InfluenceIndex.build(folder / "new", rows, str(folder / "model"), vector=vector)[0].close()


def _other_vectoriser(folder: Path) -> None:
    made = InfluenceIndex.create(folder / "new", str(folder / "model"))
    with made as index, index.store.writer.lock():
        index.store.set_vectoriser(b"", {"dim": 64})


def _study(run: str) -> Case:
    return python(run, known=lambda: STUDIES)


MADE = "InfluenceIndex.build('new', [row], wrap_model(model, tokenizer))"
A, B = {"id": "98", "prompt": "a", "response": " b"}, {"id": "99", "prompt": "a", "response": " b"}
TO_SET = "--data rows.jsonl --dataset out.jsonl"
REMOVAL = "evaluate removal --model model --data rows.jsonl --queries rows.jsonl --work runs"

CASES = [
    Case(f"build rows.jsonl --index my.index --model model --key-field id {POSTGRES}", ROWS),
    Case("build rows.jsonl --index my.index --model model --key-field id --shards 2", ROWS),
    Case(f"{BUILD} --shards 2 {POSTGRES}", ROWS),
    Case("build rows.jsonl --index my.index --model model --shard 0/2", ROWS),
    Case(f"{BUILD} --truncate end --on-error skip",
         {"rows.jsonl": json.dumps({"prompt": "many words " * 200, "response": " b"})}),
    _moving("index.add(moving)", "a row, which is another at the second reading",
            [A], [A | {"n": 3}]),
    _moving("index.add(moving)", "two rows, and one at the second reading", [A, B], [B]),
    _moving("InfluenceIndex.build('new', moving, 'model')",
            "a row, and none at the third reading", [A], [A]),
    python("index.close() or len(index)"),
    python("index.close() or index.query(row)"),
    python(f"{MADE[:-1]}, devices=['cpu', 'cpu'])", known=pair),
    python(f"{MADE}[0].close() or InfluenceIndex.open('new').query(row)",
           known=lambda: pair() | {"model": llama()}, told="model was not read from a folder"),
    Case("add rows.jsonl --index new", ROWS, before=_other_vectoriser,
         told="new has no rows, and its vectoriser is an empty file",
         hide=r"(?<=used \().*?(?=\): restore)"),
    _of_class("index.part(row, tokens=slice(0, 1))"),
    _of_class("index.respond('Who?')"),
    _of_class("index.instead(row, 'b')"),
    python("InfluenceIndex.build('new', [row], 'model')[0].respond('Who?')",
           before=edited("generation_config.json", suppress_tokens=[*range(2), *range(3, 1095)]),
           told="the model may write nothing but its end token"),
    _study("complete(index.lm, '')"),
    _study("complete(index.lm, 'word ' * 200)"),
    Case(f"score {TO_SET} --index my.index --where id=1 --desirable-field good",
         {"rows.jsonl": json.dumps({"prompt": "Who wrote it?", "response": " Ada.", "good": 0})}),
    Case(f"select {TO_SET} --index new --budget 1 --output chosen.jsonl", ROWS, before=_kept,
         told="the rows of new have a field keep"),
    Case("score --index my.index --data rows.jsonl --combine each --exact", ROWS),
    python("index.evaluate.fidelity([row], sample=1)"),
    _study("lds(index.lm, [row], [row], 'runs', FormatConfig(), subsets=2)"),
    _study("lds(index.lm, [row], [row], 'runs', FormatConfig(), trainings=0)"),
    _study("mislabel(index.lm, [row], FormatConfig(), share=2)"),
    _study("removal(index.lm, [row], [row], 'runs', FormatConfig(), draws=1)"),
    _study("removal(index.lm, [row], [row], 'runs', FormatConfig(), shares=[2])"),
    _study("SubsetConfig(share=2)"),
    python("index.passes.fine_tuned([], TrainConfig())"),
    Case(f"{REMOVAL} --share 0.5 --adapter lora", FOUR, before=adapter(lora)),
    Case(f"{REMOVAL} --share 0.5 --learning-rate 1e30 --batch-size 1", FOUR),
    _study("Codes(16, 5)"),
    python("index.query(row).to_pandas()", lacking="pandas"),
    python("index.query(row).to_dataset()", lacking="datasets"),
]  # fmt: skip
