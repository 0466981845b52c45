"""The laws that every vector and every answer must keep; each test shows that it could fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.config import RECIPES, SKETCHES
from forvalue_index.data.formatter import Formatter, content_hash
from forvalue_index.model.batching import collate
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.head import hidden_states
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.records import Row, Sample
from forvalue_index.vectors.vectoriser import Vectoriser


@pytest.fixture(params=["llama", "gpt2", "qwen2"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return wrap_model(tiny_model(request.param), tiny_tokenizer())


def samples_of(lm: LanguageModel, rows: list[Row]) -> list[Sample]:
    formatter = Formatter(lm.tokenizer, FormatConfig(), 64)
    return formatter.samples([(f"row {i}", row) for i, row in enumerate(rows)])


CONFIG = VectorConfig(dim=24, sketch_dim=512)


def fitted(lm: LanguageModel, samples: list[Sample]) -> Vectoriser:
    return fit_vectoriser(lm, samples[:20], CONFIG, lambda done: None).vectoriser


def vectors_of(
    lm: LanguageModel, samples: list[Sample], token_budget: int, vectoriser: Vectoriser
) -> np.ndarray:
    result = np.zeros((len(samples), vectoriser.dim), dtype=np.float32)
    for batch in Encoder(lm, token_budget).encode(samples, vectoriser):
        for position, item in batch:
            result[position] = item.vector
    return result


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    scale = np.linalg.norm(a, axis=1, keepdims=True)
    np.testing.assert_allclose(a / scale, b / scale, atol=2e-5)
    assert not np.allclose(a / scale, np.roll(b / scale, 1, axis=0), atol=1e-2)


def test_a_vector_does_not_depend_on_the_batch(lm: LanguageModel, rows: list[Row]) -> None:
    samples = samples_of(lm, rows)
    assert len({len(sample.input_ids) for sample in samples}) > 5  # so that there is padding
    vectoriser = fitted(lm, samples)
    alone = vectors_of(lm, samples, 1, vectoriser)
    assert_same(alone, vectors_of(lm, samples, 64 * 64, vectoriser))


def test_a_vector_does_not_depend_on_the_order(lm: LanguageModel, rows: list[Row]) -> None:
    samples = samples_of(lm, rows)
    order = np.random.default_rng(0).permutation(len(samples))
    vectoriser = fitted(lm, samples)
    shuffled = vectors_of(lm, [samples[i] for i in order], 128, vectoriser)
    assert_same(vectors_of(lm, samples, 128, vectoriser)[order], shuffled)


def test_a_vector_does_not_depend_on_the_chunk_of_tokens(
    lm: LanguageModel, rows: list[Row]
) -> None:
    samples = samples_of(lm, rows)
    vectoriser = fitted(lm, samples)
    whole = vectors_of(lm, samples, 512, vectoriser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forvalue_index.model.runner.CHUNK_TOKENS", {"cpu": 3})
        assert_same(whole, vectors_of(lm, samples, 512, vectoriser))


@pytest.mark.parametrize("pad_id", [0, 7])
def test_padding_never_contributes(lm: LanguageModel, rows: list[Row], pad_id: int) -> None:
    samples = samples_of(lm, rows)
    batch = collate(samples, list(range(len(samples))))
    lengths = [len(sample.input_ids) for sample in samples]
    other = batch.inputs["input_ids"].clone()
    for row, length in enumerate(lengths):
        other[row, length:] = pad_id
    found = []
    for ids in (batch.inputs["input_ids"], other):
        states = hidden_states(lm.model, lm.head, {"input_ids": ids})
        found.append(states.flatten(0, 1)[batch.predictors])
    torch.testing.assert_close(found[0], found[1])
    short = int(np.argmin(lengths))
    past = other.shape[1] * short + lengths[short]  # the first state of the padding
    states = hidden_states(lm.model, lm.head, {"input_ids": other}).flatten(0, 1)
    assert not torch.allclose(states[past], states[past - 1])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_left_padding_gives_the_same_states(kind: str, rows: list[Row]) -> None:
    """Rotary positions are relative, so a batch padded on the left must agree with ours."""
    lm = wrap_model(tiny_model(kind), tiny_tokenizer())
    samples = samples_of(lm, rows)
    batch = collate(samples, list(range(len(samples))))
    states = hidden_states(lm.model, lm.head, batch.inputs)
    right = batch.inputs["input_ids"]
    width = right.shape[1]
    ids, mask = torch.zeros_like(right), torch.zeros_like(right)
    for row, sample in enumerate(samples):
        ids[row, width - len(sample.input_ids) :] = torch.from_numpy(sample.input_ids.astype(int))
        mask[row, width - len(sample.input_ids) :] = 1
    left = hidden_states(lm.model, lm.head, {"input_ids": ids, "attention_mask": mask})
    shifts = torch.tensor([width - len(sample.input_ids) for sample in samples])
    ours = states.flatten(0, 1)[batch.predictors]
    theirs = left.flatten(0, 1)[batch.predictors + shifts[batch.owner]]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (shifts > 0).any()


def test_add_in_two_is_build_in_one(tmp_path: Path, model_dir: Path, rows: list[Row]) -> None:
    """With the same fitting rows: what is learned is learned from the first that are added."""
    format = FormatConfig(key_field="id")
    settings = {"format": format, "vector": VectorConfig(dim=64, sketch_dim=512, fit_samples=13)}
    fitting = sorted(rows, key=content_hash)[:13]
    rest = [row for row in rows if row not in fitting]
    one, _ = InfluenceIndex.build(tmp_path / "one", rows, str(model_dir), **settings)
    two, _ = InfluenceIndex.build(tmp_path / "two", fitting, str(model_dir), **settings)
    two.add(rest)
    assert (one.info()["segments"], two.info()["segments"]) == (1, 2)
    for opponents in (False, True):
        a = one.query(rows[:4], k=30, opponents=opponents)
        b = two.query(rows[:4], k=30, opponents=opponents)
        assert [hit.key for hit in a] == [hit.key for hit in b]
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], rtol=1e-3, atol=1e-4)
    assert len({hit.key for hit in a}) == 30


def test_opponents_are_the_proponents_of_the_opposite(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), vector=CONFIG)
    vectors = index.vectors(index.samples(rows[:5]))
    scores, ids = index.flat.search(vectors, 7, opponents=True)
    opposite, opposite_ids = index.flat.search(-vectors, 7)
    np.testing.assert_array_equal(ids, opposite_ids)
    np.testing.assert_allclose(scores, -opposite)
    assert (scores < 0).any()
    assert not np.array_equal(ids, index.flat.search(vectors, 7)[1])


def test_a_training_sample_finds_itself_first_on_unit_vectors(
    tmp_path: Path, model_dir: Path, rows: list[Row]
) -> None:
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), vector=CONFIG)
    queries = index.vectors(index.samples(rows))
    ids, scores = index.flat.scores(queries)
    stored = index.flat.vectors(ids)
    cosine = scores / np.linalg.norm(stored, axis=1) / np.linalg.norm(queries, axis=1)[:, None]
    assert ids[cosine.argmax(axis=1)].tolist() == list(range(int(ids[0]), int(ids[0]) + len(rows)))
    np.testing.assert_allclose(np.diagonal(cosine), 1, atol=0.02)  # codes of 4 bits


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_stored_scores_estimate_the_exact_form(
    tmp_path: Path, model_dir: Path, rows: list[Row], recipe: str, sketch: str
) -> None:
    vector = VectorConfig(recipe=recipe, sketch=sketch, sketch_dim=4096)
    index, _ = InfluenceIndex.build(tmp_path / "i", rows, str(model_dir), vector=vector)
    samples = index.samples(rows)
    exact = index.influence(samples, samples)
    norms = np.sqrt(np.diagonal(exact))
    ids, stored = index.scores(samples)
    error = (stored - exact) / norms[:, None] / norms[None]
    assert np.abs(error).max() < 9 / 4096**0.5
    assert np.abs(exact / norms[:, None] / norms[None]).min() < 0.2
    hits = index.query(rows, k=30)
    by_id = {(hit.query, hit.id): hit.score for hit in hits}
    for query in range(30):
        for column, id in enumerate(ids):
            assert by_id[query, int(id)] == pytest.approx(float(stored[query, column]), rel=1e-4)
