"""States: the whitened means of what the model made of rows, kept beside their vectors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.indexes import KEYED
from test_words import VECTOR, rows_of, texts

from forvalue_index import FormatConfig, InfluenceIndex
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fidelity import compared
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.records import Row, Sample
from forvalue_index.search.state import States, state_codes

QUERIES = rows_of(texts(3, seed=9))
ASSETS = Path(__file__).parent / "assets" / "index"


@pytest.fixture
def index(tmp_path: Path, lm: LanguageModel) -> Iterator[InfluenceIndex]:
    rows = rows_of(texts(90))
    with InfluenceIndex.build(tmp_path / "i", rows, lm, format=KEYED, vector=VECTOR)[0] as made:
        yield made


def plain_means(lm: LanguageModel, samples: list[Sample]) -> np.ndarray:
    """The mean of the states that predict the scored tokens, a sample at a time, in float64."""
    means = []
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            hidden = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        means.append(hidden.double().numpy()[np.flatnonzero(sample.scored) - 1].mean(0))
    return np.stack(means)


def plain_states(index: InfluenceIndex, lm: LanguageModel, samples: list[Sample]) -> np.ndarray:
    """The states of samples by the rows that the index learned from, all of it in float64."""
    fitted = sorted(index.samples([s.row for s in index.rows()]), key=lambda s: s.content_hash)
    learned = plain_means(lm, fitted[: len(fitted) - compared(lm, fitted)[0]])
    variances, directions = np.linalg.eigh(np.cov(learned.T, bias=True))
    damped = np.sqrt(np.maximum(variances, 0) + 100 * variances.mean())
    states = (plain_means(lm, samples) - learned.mean(0)) @ directions / damped
    return unit(states)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def parts_of(index: InfluenceIndex, k: int = 1000) -> dict[tuple[int, str], tuple[float, ...]]:
    hits = index.query(QUERIES, k, metric="hybrid")
    assert hits and all(set(hit.parts or ()) == {*NAMES, "influence"} for hit in hits)
    return {(h.query, h.key): tuple((h.parts or {})[name] for name in NAMES) for h in hits}


NAMES = "lexical", "cosine", "state"


def assert_same(found: InfluenceIndex, wanted: dict[tuple[int, str], tuple[float, ...]]) -> None:
    parts = parts_of(found)
    assert parts.keys() == wanted.keys()
    for key, values in wanted.items():
        assert parts[key] == pytest.approx(values, rel=1e-3, abs=1e-3), key


def test_states_are_those_of_a_plain_computation(index: InfluenceIndex, lm: LanguageModel) -> None:
    rows, queries = index.samples([s.row for s in index.rows()]), index.samples(QUERIES)
    wanted = plain_states(index, lm, queries) @ plain_states(index, lm, rows).T
    assert np.abs(wanted).mean() > 0.05  # so that it could have failed
    states, asked = index.snapshot.states, index.query_vectors(queries).states
    assert states is not None and asked is not None
    np.testing.assert_allclose(states.cosines(asked), wanted, atol=0.02)


def test_hybrid_adds_the_squares_of_three_parts(index: InfluenceIndex, lm: LanguageModel) -> None:
    queries = index.samples(QUERIES)
    states, asked = index.snapshot.states, index.query_vectors(queries).states
    assert states is not None and asked is not None
    rows = states.codes(index.snapshot.ids).astype(float)
    own = state_codes(asked).astype(float)
    state = unit(own) @ unit(rows).T
    parts = [state, *(index.scores(queries, name)[1].astype(float) for name in NAMES[:2])]
    standard = [(x - x.mean(1)[:, None]) / x.std(1)[:, None] for x in parts]
    weights = 2, 0.4, 1  # state, lexical, cosine
    wanted = sum(w * np.sign(z) * z**2 for w, z in zip(weights, standard, strict=True))
    ids, found = index.scores(queries, "hybrid")
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    known = index.scores(queries, "hybrid", vectors=index.query_vectors(queries))[1]
    np.testing.assert_array_equal(known, found)
    hits = index.query(QUERIES[:1], 9, metric="hybrid")
    assert [hit.id for hit in hits] == ids[np.argsort(-wanted[0], kind="stable")[:9]].tolist()
    assert [h.id for h in index.find(queries, index.query_vectors(queries), 9, metric="hybrid")][
        :9
    ] == [hit.id for hit in hits]


def test_a_state_depends_on_its_sample_alone(index: InfluenceIndex, lm: LanguageModel) -> None:
    samples = index.samples([s.row for s in index.rows()])
    assert len({len(sample.input_ids) for sample in samples}) > 5
    together = np.stack([e.state for e in index.session.encode(samples) if e.state is not None])
    assert len(together) == len(samples)
    for budget, order in ((1, 1), (64, -1), (4096, -1)):
        encoder = Encoder(lm, budget)
        found = dict(
            pair for batch in encoder.encode(samples[::order], index.vectoriser) for pair in batch
        )
        again = [found[i].state for i in range(len(samples))][::order]
        np.testing.assert_allclose(np.stack(again), together, atol=1e-4)


def fresh(index: InfluenceIndex, path: Path, lm: LanguageModel) -> InfluenceIndex:
    """An index of the same rows and with the same vectoriser, added at once."""
    made, _ = InfluenceIndex.build(path, rows_of(texts(90)), lm, format=KEYED, vector=VECTOR)
    rows = {sample.key: dict(sample.row) for sample in index.rows()}
    made.remove([s.key for s in made.rows() if rows.get(s.key) != s.row])
    made.add(list(rows.values()))
    return made


def test_states_follow_their_rows(index: InfluenceIndex, lm: LanguageModel, tmp_path: Path) -> None:
    index.add(rows_of(texts(40, seed=1), 90))
    index.remove([f"r{i}" for i in range(0, 60, 3)])
    index.add([{"id": "r1", "prompt": "w7 w8", "response": " w9 w10"}], update=True)
    for i in range(200, 220):  # joined meanwhile
        index.add(rows_of(texts(1, seed=i), i))
    assert len(index.snapshot.flat.segments) < 10
    with fresh(index, tmp_path / "fresh", lm) as other:
        wanted = parts_of(other)
    assert_same(index, wanted)
    gone = index.snapshot.states
    assert gone is not None and sum(len(own.ids) for own in gone.segments) > len(gone.ids)
    index.compact()
    assert_same(index, wanted)
    left = index.snapshot.states
    assert left is not None and sum(len(own.ids) for own in left.segments) == len(index)
    names = {path.stem for path in (index.directory / "segments").glob("*.faiss")}
    assert {path.stem for path in (index.directory / "derived").glob("*.states")} == names
    assert index.verify() == []
    with InfluenceIndex.open(index.directory, model=lm) as again:
        assert_same(again, wanted)


def test_shards_have_the_states_of_one_index(
    index: InfluenceIndex, lm: LanguageModel, tmp_path: Path
) -> None:
    wanted, path = parts_of(index), tmp_path / "shards"
    rows = rows_of(texts(90))
    made, _ = InfluenceIndex.build(path, rows, lm, shards=3, format=KEYED, vector=VECTOR)
    with made:
        assert_same(made, wanted)
    InfluenceIndex.reshard(path, 2)
    with InfluenceIndex.open(path, model=lm) as again:
        assert_same(again, wanted)
        assert again.verify() == []
        next(path.rglob("*.states")).unlink()
    with InfluenceIndex.open(path, model=lm) as less:
        assert set(less.query(QUERIES[:1], 1, metric="hybrid")[0].parts or ()) == {
            "lexical",
            "cosine",
            "influence",
        }


@pytest.mark.parametrize("harm", ["missing", "damaged", "of other rows"])
def test_lost_states_are_said_and_hybrid_goes_on(
    index: InfluenceIndex, lm: LanguageModel, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    index.add(rows_of(texts(5, seed=1), 90))
    path = sorted((index.directory / "derived").glob("*.states"))[1]
    sound = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(sound[:-70] + bytes([sound[-70] ^ 1]) + sound[-69:])
    else:
        segment = index.snapshot.flat.segments[1]
        codes = np.ones((segment.ntotal, 3), np.int8)
        States(np.arange(1000, 1000 + segment.ntotal), codes).write(path.parent, segment)
    with InfluenceIndex.open(index.directory, model=lm) as again:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                hits = again.query(QUERIES, 5, metric="hybrid")
        assert all("state" not in (hit.parts or ()) for hit in hits)
        told = [r.getMessage() for r in caplog.records if "states" in r.getMessage()]
        assert len(told) == 1 and "build the index again" in told[0]
        assert any(path.name in problem for problem in again.verify())
        again.repair()
        assert any(path.name in problem for problem in again.verify())
        again.remove(["r3"])
        again.compact()
        assert len(again.query(QUERIES, 5, metric="hybrid")) == 15
        assert again.verify()


def test_an_index_of_before_has_two_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(sorted(ASSETS.iterdir())[-1], tmp_path / "old")
    InfluenceIndex.migrate(tmp_path / "old" / "index")
    model = tmp_path / "old" / "model"
    with InfluenceIndex.open(tmp_path / "old" / "index", model=str(model)) as old:
        row: Row = {"prompt": "a b", "response": " c"}
        with caplog.at_level(logging.WARNING):
            (hit,) = old.query(row, 1, metric="hybrid")
        assert set(hit.parts or ()) == {"lexical", "cosine", "influence"}
        assert not [r for r in caplog.records if "states" in r.getMessage()]
        assert old.query_vectors(old.samples(row)).states is None and old.snapshot.states is None
        assert not list(old.directory.rglob("*.states"))


def test_one_row_teaches_no_states(tmp_path: Path, lm: LanguageModel) -> None:
    row: Row = {"id": "1", "prompt": "a", "response": " b"}
    index, _ = InfluenceIndex.build(tmp_path / "one", [row], lm, format=KEYED, vector=VECTOR)
    with index:
        (hit,) = index.query(row, 3, metric="hybrid")
        assert "state" not in (hit.parts or ()) and index.verify() == []


def test_the_rejected_text_of_a_preference_is_subtracted(
    index: InfluenceIndex, lm: LanguageModel, tmp_path: Path
) -> None:
    pairs: list[Row] = [{"prompt": a, "chosen": b, "rejected": f"z{b[::-1]}"} for a, b in texts(12)]
    path = tmp_path / "pairs"
    format = FormatConfig(response_field="chosen", rejected_field="rejected")
    with InfluenceIndex.build(path, pairs, lm, format=format, vector=VECTOR)[0] as made:
        hits = made.query(pairs[:2], 3, metric="hybrid")
        assert len(hits) == 6 and all("state" in (hit.parts or ()) for hit in hits)
        found = made.session.encoder.states(made.samples(pairs))
        sides = [
            index.samples([{"prompt": row["prompt"], "response": row[name]} for row in pairs])
            for name in ("chosen", "rejected")
        ]
        sizes = [np.array([s.n_scored for s in side])[:, None] for side in sides]
        sums = [plain_means(lm, side) * size for side, size in zip(sides, sizes, strict=True)]
        wanted = (sums[0] - sums[1]) / (sizes[0] + sizes[1])
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_bytes_hold_the_direction_of_a_state() -> None:
    states = np.random.default_rng(0).standard_normal((50, 256)).astype(np.float32)
    states[7] = 0
    states[8] *= 1e-20
    codes = state_codes(states)
    assert not codes[7].any() and np.abs(codes[8]).max() == 127
    found = codes.astype(float)
    for own, state in zip(found, states.astype(float), strict=True):
        if state.any():
            cosine = own @ state / np.linalg.norm(own) / np.linalg.norm(state)
            assert cosine > 0.9998
