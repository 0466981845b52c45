"""An index through any life, against a plain dict; and the torture tool in short."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.faults import Killed, die_at
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from forvalue_index import FormatConfig, InfluenceIndex, ModelConfig, VectorConfig
from forvalue_index.errors import KeyConflictError
from forvalue_index.model.language_model import LanguageModel, load_model
from forvalue_index.records import Row

KEYS = st.sets(st.integers(0, 9), min_size=1)
VERSIONS = 3
CALLS = "os.fsync", "os.replace", "os.unlink", "sqlalchemy.engine.default.DefaultDialect.do_commit"
SETTINGS: dict[str, Any] = {
    "format": FormatConfig(key_field="id"),
    "vector": VectorConfig(dim=32, sketch_dim=256),
}
QUERY: Row = {"prompt": "which one", "response": " was it"}


def row_of(number: int, version: int) -> Row:
    text = np.random.default_rng([number, version]).integers(97, 120, 8)
    return {
        "id": f"key{number}",
        "version": version,
        "prompt": f"p{number}",
        "response": " " + "".join(map(chr, text)),
    }


class Life(RuleBasedStateMachine):
    """Rules are what a user does; the model is key number -> version."""

    lm: LanguageModel

    @initialize(numbers=KEYS)
    def build(self, numbers: set[int]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "index"
        rows = [row_of(number, 0) for number in sorted(numbers)]
        self.index, _ = InfluenceIndex.build(self.path, rows, self.lm, **SETTINGS)
        self.reader = InfluenceIndex.open(self.path, model=self.lm)
        self.live = dict.fromkeys(numbers, 0)
        self.removed = 0
        # Made by the same model again, and kept as codes, as the store does.
        every = [row_of(number, version) for number in range(10) for version in range(VERSIONS)]
        vectors = self.index.vectors(self.index.samples(every))
        codes = self.index.flat.codes
        stored = codes.decode(codes.encode(vectors))
        query = self.index.vectors(self.index.samples(QUERY))[0].astype(np.float64)
        scores = stored.astype(np.float64) @ query
        scores /= self.index.vectoriser.scale**2
        self.scores = {row["response"]: score for row, score in zip(every, scores, strict=True)}
        assert len(self.scores) == len(every)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.reader.close()
            self.folder.cleanup()

    @rule(numbers=KEYS, version=st.integers(0, VERSIONS - 1))
    def add(self, numbers: set[int], version: int) -> None:
        rows = [row_of(number, version) for number in sorted(numbers)]
        if any(self.live.get(number, version) != version for number in numbers):
            with pytest.raises(KeyConflictError):
                self.index.add(rows)
            return
        report = self.index.add(rows)
        assert report.added == len(numbers - set(self.live))
        assert report.skipped == len(numbers & set(self.live))
        self.live |= dict.fromkeys(numbers, version)

    @rule(numbers=KEYS, version=st.integers(0, VERSIONS - 1))
    def update(self, numbers: set[int], version: int) -> None:
        changed = {n for n in numbers & set(self.live) if self.live[n] != version}
        report = self.index.add([row_of(n, version) for n in sorted(numbers)], update=True)
        assert report.updated == len(changed)
        self.live |= dict.fromkeys(numbers, version)
        self.removed += len(changed)

    @rule(numbers=KEYS)
    def remove(self, numbers: set[int]) -> None:
        gone = numbers & set(self.live)
        assert self.index.remove(f"key{number}" for number in numbers) == len(gone)
        for number in gone:
            del self.live[number]
        self.removed += len(gone)

    @rule()
    def compact(self) -> None:
        assert self.index.compact().removed == self.removed
        self.removed = 0

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = InfluenceIndex.open(self.path, model=self.lm)

    @rule(
        numbers=KEYS,
        version=st.integers(0, VERSIONS - 1),
        compacts=st.booleans(),
        call=st.sampled_from(CALLS),
        nth=st.integers(1, 6),
        after=st.booleans(),
    )
    def crash(
        self, numbers: set[int], version: int, compacts: bool, call: str, nth: int, after: bool
    ) -> None:
        """An update or a compaction dies at some call; run again, it comes to its end."""
        rows = [row_of(number, version) for number in sorted(numbers)]

        def work() -> object:  # on the index that is open then
            return self.index.compact() if compacts else self.index.add(rows, update=True)

        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, call, nth, after)
            try:
                work()
            except Killed:
                self.reopen()
        if compacts:
            self.agrees()
        else:
            found = {s.row["id"]: s.row["version"] for s in self.index.rows()}
            after_it = self.live | dict.fromkeys(numbers, version)
            for number in range(10):
                allowed = self.live.get(number), after_it.get(number)
                assert found.get(f"key{number}") in allowed
            self.live = after_it
        work()
        self.removed = self.index.info()["removed"]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "index"):
            return
        expected = {f"key{n}": row_of(n, version) for n, version in self.live.items()}
        for index in (self.index, self.reader):
            hits = index.query(QUERY, k=100)
            assert len(hits) == len(expected) == len(index)
            assert {hit.key: hit.sample for hit in hits} == expected
            for hit in hits:
                own = self.scores[hit.sample["response"]]
                assert hit.score == pytest.approx(own, rel=2e-3, abs=1e-3 * self.largest())
        assert {s.key: s.row for s in self.index.rows()} == expected

    def largest(self) -> float:
        return max(map(abs, self.scores.values()))


def test_any_life_agrees_with_a_dict(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", 3)
    monkeypatch.setattr("forvalue_index.store.compact.TARGET", 6 * 32 * 2)
    Life.lm = load_model(ModelConfig(str(model_dir)), "cpu")
    run_state_machine_as_test(
        Life,
        settings=settings(max_examples=12, stateful_step_count=10),
    )


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_add_ends_as_an_uninterrupted_one(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    """Killed at every fsync and commit in turn, then run again."""
    lm = load_model(ModelConfig(str(model_dir)), "cpu")

    def whole(name: str) -> list[tuple[str, Row, float]]:
        with InfluenceIndex.build(tmp_path / name, rows, lm, **SETTINGS)[0] as index:
            assert index.verify() == []
            return [(hit.key, hit.sample, hit.score) for hit in index.query(QUERY, k=100)]

    expected, deaths = whole("whole"), 0
    for call in ("os.fsync", "os.replace"):
        for nth in range(1, 100):
            path = tmp_path / f"{call}{nth}"
            InfluenceIndex.create(path, lm, **SETTINGS).close()
            with pytest.MonkeyPatch.context() as patch:
                die_at(patch, call, nth, after=False)
                try:
                    with InfluenceIndex.open(path, model=lm) as index:
                        index.add(rows)
                        break
                except Killed:
                    deaths += 1
            found = whole(path.name)
            assert [hit[:2] for hit in found] == [hit[:2] for hit in expected]
            np.testing.assert_allclose(
                [hit[2] for hit in found], [hit[2] for hit in expected], rtol=2e-3, atol=1e-2
            )
    assert deaths > 10


def test_torture_in_short() -> None:
    """The whole takes minutes: tools/torture.py."""
    tool = Path(__file__).parent.parent / "tools" / "torture.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--kills", "6", "--short"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert " 0 violations" in done.stdout
