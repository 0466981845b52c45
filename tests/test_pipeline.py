"""Adding as a pipeline, and batches that fit into the memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import tiny_model, tiny_tokenizer

from forvalue_index import FormatConfig, InfluenceIndex, VectorConfig
from forvalue_index.data.formatter import Formatter
from forvalue_index.data.tokens import Rendered
from forvalue_index.errors import ModelError, RowError, StorageError
from forvalue_index.model.encoder import Encoder
from forvalue_index.model.fit import fit_vectoriser
from forvalue_index.model.language_model import LanguageModel, wrap_model
from forvalue_index.model.runner import (
    CHUNK_TOKENS,
    SMALLEST_CHUNK,
    STATES,
    TOKEN_BUDGET,
    Runner,
)
from forvalue_index.pipeline.session import Session
from forvalue_index.records import Row, Sample
from forvalue_index.store.writer import Writer
from forvalue_index.system.prefetch import ahead

KEYED = FormatConfig(key_field="id")
SMALL = VectorConfig(dim=16, sketch_dim=256, fit_samples=8)
CHUNK = 8


@pytest.fixture()
def lm() -> LanguageModel:
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture()
def samples(lm: LanguageModel, rows: list[Row]) -> list[Sample]:
    return Formatter(lm.tokenizer, KEYED, 64).samples([(f"row {i}", r) for i, r in enumerate(rows)])


# -- the thread ------------------------------------------------------------------------------------


def test_the_next_item_is_made_while_one_is_used_and_no_more() -> None:
    made = []

    def items() -> Any:
        for number in range(5):
            made.append(number)
            yield number

    used = []
    for item in ahead(items()):
        used.append(item)
        assert len(made) <= item + 2
    assert used == made == [0, 1, 2, 3, 4]
    assert not working("ahead")


def test_an_error_comes_in_its_place_and_the_thread_ends() -> None:
    def items() -> Any:
        yield 1
        raise RowError("row 2", "bad")

    with closing(ahead(items())) as iterator:
        assert next(iterator) == 1
        with pytest.raises(RowError, match="row 2: bad"):
            next(iterator)
    with closing(ahead(iter(range(3)))) as iterator:
        assert next(iterator) == 0
    assert not working("ahead")


def working(*names: str) -> list[str]:
    """Returns the threads of a pipeline that have not ended."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


# -- memory ----------------------------------------------------------------------------------------


def limit_memory(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, most: int, error: Exception
) -> list[int]:
    """Lets the model raise an error for more than `most` tokens; returns the sizes it was given."""
    forward, sizes = lm.model.forward, []

    def limited(input_ids: torch.Tensor, **settings: Any) -> Any:
        sizes.append(input_ids.numel())
        if input_ids.numel() > most:
            raise error
        return forward(input_ids=input_ids, **settings)

    monkeypatch.setattr(lm.model, "forward", limited)
    return sizes


def vectors_of(encoder: Encoder, samples: list[Sample], vectoriser: Any) -> np.ndarray:
    result, seen = np.zeros((len(samples), vectoriser.dim)), []
    for batch in encoder.encode(samples, vectoriser):
        for position, item in batch:
            result[position] = item.vector
            seen.append(position)
    assert sorted(seen) == list(range(len(samples)))
    return result


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "numpy"],
)
def test_batches_that_do_not_fit_are_halved_and_the_rest_goes_on(
    lm: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    vectoriser = fit_vectoriser(lm, samples, SMALL, lambda done: None).vectoriser
    expected = vectors_of(Encoder(lm), samples, vectoriser)
    most = 100
    assert max(len(sample.input_ids) for sample in samples) <= most
    sizes = limit_memory(lm, monkeypatch, most, error)
    encoder = Encoder(lm)
    found = vectors_of(encoder, samples, vectoriser)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert sizes[0] > most and encoder.runner.token_budget <= most
    sizes.clear()
    vectors_of(encoder, samples, vectoriser)  # it has learned what fits
    assert max(sizes) <= most
    failed = Encoder(lm)
    (statistics,), _ = failed.read(samples)
    assert statistics.n_tokens == sum(sample.n_scored for sample in samples)
    np.testing.assert_allclose(Encoder(lm).losses(samples), encoder.losses(samples), rtol=1e-5)


def test_chunks_of_logits_that_do_not_fit_are_halved(
    lm: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectoriser = fit_vectoriser(lm, samples, SMALL, lambda done: None).vectoriser
    expected = vectors_of(Encoder(lm), samples, vectoriser)
    errors, sizes = type(lm.head).errors, []

    def limited(self: Any, hidden: torch.Tensor, targets: torch.Tensor, room: Any = None) -> Any:
        sizes.append(len(hidden))
        if len(hidden) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return errors(self, hidden, targets, room)

    monkeypatch.setattr(type(lm.head), "errors", limited)
    long = Formatter(lm.tokenizer, FormatConfig(text_field="text"), 64).samples(
        [("row 1", {"text": "x" * 60})]
    )
    encoder = Encoder(lm)
    vectors_of(encoder, long, vectoriser)
    assert sizes[0] == 59
    np.testing.assert_allclose(
        vectors_of(encoder, samples, vectoriser), expected, rtol=1e-4, atol=1e-4
    )


def test_what_the_model_has_read_is_not_read_again(
    lm: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectoriser = fit_vectoriser(lm, samples, SMALL, lambda done: None).vectoriser
    expected = vectors_of(Encoder(lm), samples, vectoriser)
    encoder = Encoder(lm, 100)
    _, known = encoder.read(samples[:12])
    sizes = limit_memory(lm, monkeypatch, 10**6, MemoryError())

    def encoded() -> np.ndarray:
        found = np.empty_like(expected)
        for batch in encoder.encode(samples, vectoriser, list(known)):
            for position, item in batch:
                found[position] = item.vector
        return found

    np.testing.assert_allclose(encoded(), expected, rtol=1e-4, atol=1e-4)
    read = sum(sizes)
    assert 0 < read < sum(len(sample.input_ids) for sample in samples)

    attempt = Runner.attempt

    def failing(self: Runner, work: Any, batch: Any) -> Any:
        known_one = any(batch is reading.batch for reading in known)
        return None if known_one else attempt(self, work, batch)

    monkeypatch.setattr(Runner, "attempt", failing)
    sizes.clear()
    np.testing.assert_allclose(encoded(), expected, rtol=1e-4, atol=1e-4)
    assert sum(sizes) > read  # there was no room for what follows: the model reads them again


def test_states_are_not_kept_where_there_is_no_room_for_them(
    lm: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, attempt, most = Encoder(lm, 64), Runner.attempt, 3
    budget = encoder.runner.token_budget
    kept: list[Any] = []
    made = 0

    def limited(self: Runner, work: Any, batch: Any) -> Any:
        nonlocal made
        if len(kept) == most:
            return None
        made += 1
        return attempt(self, work, batch)

    each = Runner.each

    def spy(self: Runner, *args: Any, spare: Any = None, **settings: Any) -> Any:
        nonlocal kept
        kept = spare
        return each(self, *args, spare=spare, **settings)

    monkeypatch.setattr(Runner, "each", spy)
    monkeypatch.setattr(Runner, "attempt", limited)
    (statistics,), known = encoder.read(samples)
    assert statistics.n_tokens == sum(sample.n_scored for sample in samples)
    assert 0 < len(known) <= most < made
    assert encoder.runner.token_budget == budget  # batches are as large as before


def test_a_sample_that_does_not_fit_alone_is_a_clear_error(
    lm: LanguageModel, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(lm, monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ModelError, match=r"row \d+: sample 'row-\d+' of \d+ tokens does not fit"):
        Encoder(lm).losses(samples)
    limit_memory(lm, monkeypatch, 2, RuntimeError("expected scalar type Float"))
    with pytest.raises(RuntimeError, match="expected scalar type"):
        Encoder(lm).losses(samples)


def test_a_gpu_with_little_memory_begins_with_small_batches(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(free: int) -> tuple[int, int]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        runner = Runner(replace(lm, device=torch.device("cuda")))
        return runner.token_budget, runner.chunk

    assert sizes(1 << 36) == (TOKEN_BUDGET["cuda"], CHUNK_TOKENS["cuda"])
    token = STATES * lm.head.hidden * 4
    assert sizes(2000 * token) == (1000, 1000)
    assert sizes(0) == (1, SMALLEST_CHUNK)
    large = replace(lm.head, vocabulary=2**18)
    lm = replace(lm, checkpoints=(replace(lm.checkpoints[0], head=large),))
    assert sizes(1 << 40)[1] == 512
    assert sizes(1 << 32)[1] == 128


@pytest.mark.gpu
def test_vectors_of_a_gpu_are_those_of_the_cpu(lm: LanguageModel, samples: list[Sample]) -> None:
    vectoriser = fit_vectoriser(lm, samples, SMALL, lambda done: None).vectoriser
    expected = vectors_of(Encoder(lm), samples, vectoriser)
    gpu = wrap_model(tiny_model("llama").to("cuda"), lm.tokenizer)
    moved = type(vectoriser).from_bytes(vectoriser.to_bytes(), SMALL, gpu.device)
    for budget in (None, 64):
        found = vectors_of(Encoder(gpu, budget), samples, moved)
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_factors_know_their_runs_and_recipes_keep_them(
    lm: LanguageModel, samples: list[Sample]
) -> None:
    vectoriser = fit_vectoriser(lm, samples, SMALL, lambda done: None).vectoriser
    encoder = Encoder(lm)
    encoder.runner.chunk = 7
    n_chunks = 0
    for batch, hidden in encoder.runner.each(samples, lambda batch: encoder._hidden(batch, 0)):
        for tokens in encoder._chunks(batch, hidden, 0, encoder.no_losses(batch)):
            known = vectoriser.parts[0](tokens).known_runs
            owners, counts = torch.unique_consecutive(tokens.owner, return_counts=True)
            assert known == list(zip(owners.tolist(), counts.tolist(), strict=True))
            n_chunks += 1
    assert n_chunks > 3


# -- adding ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forvalue_index.pipeline.add.CHUNK", CHUNK)


def hook(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: Callable[[int], None]
) -> None:
    """Calls `before` with the number of the call, from 1, whenever a method is called."""
    method, calls = getattr(owner, name), []

    def hooked(self: Any, *arguments: Any, **settings: Any) -> Any:
        calls.append(None)
        before(len(calls))
        return method(self, *arguments, **settings)

    monkeypatch.setattr(owner, name, hooked)


@pytest.fixture()
def index(tmp_path: Path, lm: LanguageModel, rows: list[Row]) -> Any:
    """An index of the first rows, in which the pipeline has no fitting to do any more."""
    built, _ = InfluenceIndex.build(tmp_path / "i", rows[:6], lm, format=KEYED, vector=SMALL)
    with built:
        yield built
    assert not working("ahead", "commit", "device")


def test_rows_are_tokenised_ahead_and_committed_behind(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised, encoding = [threading.Event() for _ in range(4)], [threading.Event() for _ in "123"]

    def encode(call: int) -> None:  # waits for the samples of the next chunk
        encoding[call - 1].set()
        assert call == 3 or tokenised[call].wait(20)

    def commit(call: int) -> None:  # waits for the encoding of the next chunk
        assert call == 3 or encoding[call].wait(20)

    hook(monkeypatch, Formatter, "samples", lambda call: tokenised[call - 1].set())
    hook(monkeypatch, Session, "encode", encode)
    hook(monkeypatch, Writer, "commit", commit)
    report = index.add(rows)
    assert (report.added, report.skipped, len(index)) == (24, 6, 30)
    assert [index.get(row["id"]).id for row in rows] == list(range(30))


def test_an_error_in_a_commit_ends_the_work_and_the_next_run_goes_on(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(call: int) -> None:
        if call == 2:
            raise StorageError("the disk is full")
        assert call < 3, "nothing is committed after what failed"

    with monkeypatch.context() as patch:
        hook(patch, Writer, "commit", full)
        with pytest.raises(StorageError, match="the disk is full"):
            index.add(rows)
    assert not working("ahead", "commit")
    assert len(index) == 6 + CHUNK
    assert index.verify() == []
    assert index.add(rows).added == 2 * CHUNK
    assert index.verify() == []


def test_an_interruption_while_encoding_lets_the_last_commit_end(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, interrupted = threading.Event(), threading.Event()

    def encode(call: int) -> None:
        if call == 2:
            assert begun.wait(20)
            interrupted.set()
            raise KeyboardInterrupt

    def commit(_: int) -> None:
        begun.set()
        assert interrupted.wait(20)

    with monkeypatch.context() as patch:
        hook(patch, Session, "encode", encode)
        hook(patch, Writer, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            index.add(rows)
    assert not working("ahead", "commit")
    assert (len(index), index.verify()) == (6 + CHUNK, [])
    assert index.add(rows).added == 2 * CHUNK


def test_a_row_that_cannot_be_tokenised_stops_after_the_chunks_before_it(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Formatter._text

    def picky(self: Formatter, row: Row, source: str) -> Rendered:
        if row["n"] == 15:
            raise RowError(source, "unwanted")
        return text(self, row, source)

    monkeypatch.setattr(Formatter, "_text", picky)
    with pytest.raises(RowError, match="row 16: unwanted"):
        index.add(rows)
    assert not working("ahead", "commit")
    assert (len(index), index.verify()) == (6 + CHUNK, [])
    report = index.add(rows, on_error="skip")
    assert (report.added, report.rejected, len(index)) == (2 * CHUNK - 1, 1, 29)


def test_a_row_that_the_model_cannot_read_leaves_the_chunks_before_it(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(call: int) -> None:
        if call == 3:
            raise ModelError("the model gives NaN")

    with monkeypatch.context() as patch:
        hook(patch, Session, "encode", encode)
        with pytest.raises(ModelError, match="gives NaN"):
            index.add(rows)
    assert (len(index), index.verify()) == (6 + 2 * CHUNK, [])


def test_rows_that_are_there_need_no_model(
    index: InfluenceIndex, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.session.unload()
    monkeypatch.setattr("forvalue_index.model.language_model.load_model", None)
    assert index.add(rows[:6]).skipped == 6
