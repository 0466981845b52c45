"""The same rows in every kind of file and of object give the same keys, tokens and vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pytest
import torch
from helpers.chat_templates import tokenizer
from helpers.indexes import SMALL
from helpers.models import SIZES
from helpers.row_files import WRITERS, to_csv, to_jsonl
from transformers import AutoModelForCausalLM, LlamaConfig

from forvalue_index import FormatConfig, InfluenceIndex, wrap_model
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row

TEMPLATE = Path(__file__).parent / "assets" / "chat" / "chatml.jinja"


def tool(name: str, **parameters: Any) -> Row:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def conversation(number: int) -> Row:
    """A row with what tables fill with nulls: calls, tools and a system prompt that others lack."""
    asked = {"role": "user", "content": f"What is {number}?"}
    answer = {"role": "assistant", "content": f"It is {number * 7}."}
    row: Row = {"id": f"k{number}", "n": number, "messages": [asked, answer]}
    if number % 3 == 0:
        name, arguments = ("clock", {"hour": number}) if number % 2 else ("map", {"place": "Rome"})
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        result = {"role": "tool", "name": name, "content": "done"}
        row["messages"] = [asked, called, result, answer]
        row["tools"] = [
            tool("clock", hour={"type": "integer"}),
            tool("map", place={"enum": ["Rome"]}),
        ]
    if number % 5 == 0:
        row["system"] = "Be brief."
    return row


ROWS = [conversation(number) for number in range(50)]
PAIRS = [
    {"id": f"k{number}", "prompt": f"What is {number}?", "response": f" It is {number * 7}."}
    for number in range(50)
]


def with_json(rows: list[Row]) -> Any:
    """A data set whose nested values are JSON to Arrow, as `datasets` has them from 4.8 on."""
    if not hasattr(datasets, "Json"):
        pytest.skip("datasets has no type Json")
    text, number, any_json = datasets.Value("string"), datasets.Value("int64"), datasets.Json()
    features = {"id": text, "n": number, "messages": datasets.List(any_json), "tools": any_json}
    filled = [dict.fromkeys([*features, "system"]) | row for row in rows]
    return datasets.Dataset.from_list(filled, datasets.Features(features | {"system": text}))


def polars_frame(rows: list[Row]) -> Any:
    return pytest.importorskip("polars").DataFrame(rows, infer_schema_length=None)


OBJECTS: dict[str, Callable[[list[Row]], Any]] = {
    "generator": lambda rows: (row for row in rows),
    "Dataset": datasets.Dataset.from_list,
    "streaming Dataset": lambda rows: datasets.Dataset.from_list(rows).to_iterable_dataset(),
    "Dataset with Json": with_json,
    "streaming Dataset with Json": lambda rows: with_json(rows).to_iterable_dataset(),
    "pandas": pandas.DataFrame,
    "polars": polars_frame,
    "pyarrow table": pa.Table.from_pylist,
    "pyarrow reader": lambda rows: pa.Table.from_pylist(rows).to_reader(),
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    made = tokenizer(TEMPLATE.read_text())
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": len(made), "max_position_embeddings": 1024}
    return wrap_model(AutoModelForCausalLM.from_config(LlamaConfig(**sizes)), made)


Found = tuple[list[str], list[list[int]], list[list[bool]], np.ndarray]


def read(folder: Path, data: Any, lm: LanguageModel, **settings: Any) -> Found:
    """Keys, tokens, which of them are scored, and vectors of rows, from an index of them."""
    format = FormatConfig(**settings) if settings else None
    index, _ = InfluenceIndex.build(folder / "index", data, lm, format=format, vector=SMALL)
    with index:
        ids = sorted(index.store.catalog.samples(index.snapshot.ids.tolist()))
        samples = index.training_samples(ids)
        keys = [sample.key for sample in samples]
        order = np.argsort(keys)
        index.export(folder / "vectors.npy", folder / "rows.jsonl")
        vectors = np.load(folder / "vectors.npy")[order]
    chosen = [samples[i] for i in order]
    tokens = [sample.input_ids.tolist() for sample in chosen]
    return sorted(keys), tokens, [sample.scored.tolist() for sample in chosen], vectors


def require_same(found: Found, wanted: Found) -> None:
    assert found[:3] == wanted[:3]
    np.testing.assert_array_equal(found[3], wanted[3])


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Found:
    """What JSON Lines give."""
    folder = tmp_path_factory.mktemp("wanted")
    found = read(folder, to_jsonl(folder / "rows.jsonl", ROWS), lm)
    texts = [lm.tokenizer.decode(ids) for ids in found[1]]
    assert sum('"arguments": {"place": "Rome"}' in text for text in texts) == 9
    assert sum("Tools:" in text for text in texts) == 17 and not any("null" in t for t in texts)
    return found


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("csv", "tsv")])
def test_conversations_from_files(
    kind: str, tmp_path: Path, lm: LanguageModel, wanted: Found
) -> None:
    path = WRITERS[kind](tmp_path / f"rows.{kind}", ROWS)
    require_same(read(tmp_path, path, lm), wanted)


@pytest.mark.parametrize("kind", OBJECTS)
def test_conversations_in_memory(
    kind: str, tmp_path: Path, lm: LanguageModel, wanted: Found
) -> None:
    require_same(read(tmp_path, OBJECTS[kind](ROWS), lm), wanted)


@pytest.mark.parametrize("suffix", ["parquet", "folder"])
def test_values_of_the_type_json_from_files(
    suffix: str, tmp_path: Path, lm: LanguageModel, wanted: Found
) -> None:
    dataset, path = with_json(ROWS), tmp_path / f"rows.{suffix}"
    (dataset.to_parquet if suffix == "parquet" else dataset.save_to_disk)(path)
    require_same(read(tmp_path, path, lm), wanted)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "pandas"])
def test_prompts_and_responses(kind: str, tmp_path: Path, lm: LanguageModel) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    data = OBJECTS[kind](PAIRS) if kind in OBJECTS else WRITERS[kind](tmp_path / f"r.{kind}", PAIRS)
    require_same(read(tmp_path / "a", data, lm), read(tmp_path / "b", PAIRS, lm))


def test_a_csv_file_may_hold_conversations_as_json(tmp_path: Path, lm: LanguageModel) -> None:
    """Its content hashes are other ones: its fields are text."""
    texts = [
        {"id": row["id"], "tools": json.dumps(row["tools"]) if "tools" in row else ""}
        | {"messages": json.dumps(row["messages"]), "system": row.get("system", "")}
        for row in ROWS
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    settings = {"messages_field": "messages", "key_field": "id"}
    found = read(tmp_path / "a", to_csv(tmp_path / "rows.csv", texts), lm, **settings)
    assert found[:3] == read(tmp_path / "b", ROWS, lm, **settings)[:3]
