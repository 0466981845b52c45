"""What a program may give by mistake: clear errors, and nothing that is stored is lost."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig, wrap_model
from forvalue_index.errors import InputError, ModelError

QUERY = {"prompt": "ab", "response": "cd"}
ROWS = [{"id": f"k{i}", "prompt": f"ab{i}", "response": f"c{i}d", "n": i} for i in range(12)]
SMALL = VectorConfig(dim=32, sketch_dim=64, fit_samples=8)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluenceIndex]:
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    format, place = FormatConfig(key_field="id"), tmp_path_factory.mktemp("misuse") / "index"
    with InfluenceIndex.build(place, ROWS, lm, format=format, vector=SMALL)[0] as made:
        yield made


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.query(QUERY, k=1.5), "k is 1.5, but it is a number of hits"),
        (lambda index: index.query(QUERY, k="5"), "k is '5', but it is a number of hits"),
        (lambda index: index.query(QUERY, k=True), "k is True, but it is a number of hits"),
        (lambda index: index.search("ab", k=None), "k is None, but it is a number of hits"),
        (lambda index: index.query(QUERY, exact=True, candidates=0), "candidates is 0, but"),
        (lambda index: index.query(QUERY, metric=["dot"]), "is not one of dot, cosine"),
        (lambda index: index.query(QUERY, where=None), "None is NoneType, but keys, conditions"),
        (lambda index: index.query(QUERY, format={}), "settings are a dict, but must be a Form"),
        (lambda index: index.respond("ab", format={}), "settings are a dict, but must be a Form"),
        (lambda index: index.respond(["ab"]), "a prompt is text or a row, not list"),
        (lambda index: index.search(["ab", 3]), "3 is int, but keys, conditions and words are"),
        (lambda index: index.remove([3]), "3 is int, but keys, conditions and words are text"),
        (lambda index: index.remove(3), "3 is int, but keys, conditions and words are text"),
        (lambda index: index.get(3), "3 is int, but keys, conditions and words are text"),
        (lambda index: index.explain(QUERY, 3), "3 is int, but keys, conditions and words"),
        (lambda index: index.select([QUERY], budget=1.5), "budget is 1.5, but it is a number"),
        (lambda index: pickle.dumps(index), "cannot be copied to another process"),
        (lambda index: InfluenceIndex("my.index"), "use InfluenceIndex.open"),
    ],
)
def test_what_is_of_the_wrong_kind_is_told(
    index: InfluenceIndex, ask: Callable[[InfluenceIndex], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(index)
    assert len(index) == len(ROWS)


def test_numbers_of_numpy_are_numbers(index: InfluenceIndex) -> None:
    assert len(index.query(QUERY, k=np.int64(3), candidates=np.int32(4), exact=True)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FormatConfig, {"max_length": "10"}, "max_length is '10', but must be a whole number"),
        (FormatConfig, {"max_length": 0}, "max_length is 0: use 1 token or more"),
        (FormatConfig, {"prompt_field": None}, "prompt_field is None, but must be text"),
        (FormatConfig, {"chat": 1}, "chat is 1, but must be True or False"),
        (FormatConfig, {"template_args": "a=b"}, "template_args is 'a=b', but must be text, sev"),
        (ModelConfig, {"name": None}, "name is None, but must be text"),
        (ModelConfig, {"name": "x", "adapters": "abc"}, "adapters is 'abc', but must be text, s"),
    ],
)
def test_settings_have_types(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**settings)


def test_a_list_of_settings_is_as_good_as_a_tuple() -> None:
    assert ModelConfig("x", adapters=["a"]).adapters == ("a",)  # type: ignore[arg-type]
    of_paths = ModelConfig(Path("x"), adapters=[Path("a")])  # type: ignore[arg-type, list-item]
    assert (of_paths.name, of_paths.adapters) == ("x", ("a",))
    assert ModelConfig("x", adapters=("a",), adapter_weights=(1,)).adapter_weights == (1,)


def test_settings_of_an_index_are_of_their_class(tmp_path: Path) -> None:
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    for given in ({"format": {}}, {"vector": {"dim": 3}}):
        for make in (
            lambda given=given: InfluenceIndex.create(tmp_path / "a", lm, **given),
            lambda given=given: InfluenceIndex.build(tmp_path / "a", ROWS, lm, **given),
        ):
            with pytest.raises(InputError, match="settings are a dict, but must be a"):
                make()
    assert not (tmp_path / "a").exists()


def test_a_model_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the tokenizer is NoneType: give wrap_model"):
        InfluenceIndex.create(tmp_path / "a", wrap_model(tiny_model("llama"), None))
    assert not (tmp_path / "a").exists()


def test_a_closed_index_is_closed(tmp_path: Path) -> None:
    """It neither answers nor writes, nor loads its model anew."""
    lm = wrap_model(tiny_model("llama"), tiny_tokenizer())
    format = FormatConfig(key_field="id")
    index, _ = InfluenceIndex.build(tmp_path / "a", ROWS, lm, format=format, vector=SMALL)
    index.close()
    index.close()
    uses: list[Callable[[], Any]] = [
        lambda: index.query(QUERY),
        lambda: index.search("ab"),
        lambda: index.add([QUERY | {"id": "new"}]),
        lambda: index.remove(["k0"]),
        index.compact,
        index.verify,
        index.info,
        index.audit,
        lambda: index.score([QUERY]),
        lambda: list(index.rows()),
        lambda: len(index),
    ]
    for use in uses:
        with pytest.raises(InputError, match="is closed: open it again"):
            use()
    assert repr(index) == f"<InfluenceIndex '{tmp_path / 'a'}': closed>"
    with InfluenceIndex.open(tmp_path / "a", model=lm) as again:
        assert sorted(row.key for row in again.rows()) == sorted(str(row["id"]) for row in ROWS)


def test_an_index_of_a_model_in_memory_asks_for_it(index: InfluenceIndex) -> None:
    with (
        InfluenceIndex.open(index.directory) as opened,
        pytest.raises(ModelError, match="was made with a model in memory"),
    ):
        opened.query(QUERY)
