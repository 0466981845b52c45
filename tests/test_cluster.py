"""Shards on a Ray cluster of three nodes, whose workers and nodes are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.indexes import SETTINGS, exported
from helpers.ray_cluster import connected, ray_cluster

from forvalue_index import InfluenceIndex, ModelConfig
from forvalue_index.cluster.search import OnRay
from forvalue_index.errors import (
    InputError,
    KeyConflictError,
    RowError,
    WorkerError,
)
from forvalue_index.records import Row

pytestmark = [pytest.mark.filterwarnings("ignore")]  # those of Ray's own code

ROWS: list[Row] = [
    {
        "id": f"row-{n}",
        "prompt": f"w{n} {n % 7}x",
        "response": f" {n % 11} and {n * 37 % 101}",
        "half": "ab"[n % 2],
    }
    for n in range(90)
]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of a head without CPUs and two nodes with one each."""
    with ray_cluster() as cluster, connected(cluster):
        yield cluster


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    paths = [folder / f"{n}.jsonl" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[n::3]))
    return paths


def holder(directory: Path) -> int | None:
    """The worker that is writing to a shard now; this process does while it learns."""
    for lock in sorted(directory.glob("shards/*/write.lock")):
        with suppress(ValueError, KeyError, OSError):
            pid = int(json.loads(lock.read_text())["pid"])
            return None if pid == os.getpid() else pid
    return None


@pytest.fixture(scope="module")
def built(
    ray: Any, files: list[Path], model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An index that was built while two of its writers were killed."""
    path, killed = tmp_path_factory.mktemp("ray") / "i", list[int]()
    seen: list[tuple[str, int, int, int]] = []
    done = threading.Event()

    def kill_two() -> None:
        while len(killed) < 2 and not done.is_set():
            pid = holder(path)
            if pid is not None and pid not in killed:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=kill_two)
    thread.start()
    try:
        report = InfluenceIndex.build_on_ray(
            path,
            files,
            ModelConfig(str(model_dir)),
            4,
            progress=lambda *step: seen.append(step),
            **SETTINGS,
        )
    finally:
        done.set()
        thread.join()
    assert len(killed) == 2
    assert (report.added + report.skipped, report.samples, report.rejected) == (90, 90, 0)
    encoding = [step for step in seen if step[0] == "encoding"]
    assert encoding
    assert {step[2] for step in encoding} == {90}
    assert not path.with_name("i.incoming").exists()
    return path


@pytest.fixture(scope="module")
def plain(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluenceIndex]:
    path = tmp_path_factory.mktemp("plain") / "i"
    index, _ = InfluenceIndex.build(path, ROWS, str(model_dir), **SETTINGS)
    with index:
        yield index


def hits_of(index: InfluenceIndex, **asked: Any) -> list[tuple[int, str, Any]]:
    return [
        (hit.query, hit.key, pytest.approx(hit.score, rel=1e-2, abs=1e-3))
        for hit in index.query(ROWS[:5], k=6, **asked)
    ]


def test_what_ray_built_is_the_index(built: Path, plain: InfluenceIndex) -> None:
    with InfluenceIndex.open(built) as index:
        assert sorted(sample.key for sample in index.rows()) == sorted(row["id"] for row in ROWS)
        assert index.verify() == []
        assert index.store.fingerprint["vectoriser"] == plain.store.fingerprint["vectoriser"]
        assert hits_of(index) == hits_of(plain)


def test_searches_go_to_actors_that_may_die(built: Path, plain: InfluenceIndex) -> None:
    import ray

    with InfluenceIndex.open(built) as index, index.on_ray():
        searcher = index.store.snapshots._searcher  # type: ignore[attr-defined]
        assert isinstance(searcher, OnRay)
        for asked in ({}, {"metric": "cosine", "opponents": True}, {"where": "half=a"}):
            assert hits_of(index, **asked) == hits_of(plain, **asked)
        pids = [ray.get(actor.process.remote()) for _, actor in searcher.actors]
        assert len(set(pids)) == 2
        assert os.getpid() not in pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            assert hits_of(index, metric="decorrelated") == hits_of(plain, metric="decorrelated")
        again = [ray.get(actor.process.remote()) for _, actor in searcher.actors]
        assert not set(pids) & set(again)
        # What is written meanwhile is found.
        assert index.remove("row-0") == 1
        assert "row-0" not in {key for _, key, _ in hits_of(index)}
        assert index.add([ROWS[0]]).added == 1
        assert hits_of(index) == hits_of(plain)


def analysed(index: InfluenceIndex) -> list[Any]:
    """All that score, audit and select find in an index."""
    found: list[Any] = []
    for asked in (
        {"target_group": "half", "group_by": "half"},
        {"combine": "max", "metric": "per-token"},
        {"metric": "cosine", "where": "half=a"},
        {"metric": "decorrelated"},
    ):
        score = index.score(ROWS[:7], **asked)
        found += [list(score.rows()), score.summary(), score.groups]
    audit = index.audit(trusted=ROWS[3:40], class_field="half", top=20)
    found += [audit.rows, audit.estimate, audit.twins]
    found += [{name: own.tolist() for name, own in audit.scores.items()}]
    found += [index.audit(where="half=b").scores["opposition"].tolist()]
    chosen = index.select(ROWS[:7], budget=9)
    return [*found, chosen.ids.tolist(), chosen.report()]


@pytest.mark.parametrize("shards", [1, 3])
def test_analysis_by_actors_finds_what_it_finds_here(
    ray: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    import ray as engine

    made, _ = InfluenceIndex.build(tmp_path / "i", ROWS, str(model_dir), shards=shards, **SETTINGS)
    with made as index:
        rows_of_a_block = 7
        monkeypatch.setattr("forvalue_index.store.work._NUMBERS", rows_of_a_block * index.store.dim)
        wanted = analysed(index)
        with index.on_ray():
            searcher: OnRay = index.store.snapshots._searcher  # type: ignore[attr-defined]
            # Nothing of it reads the vectors in this process, but for the choice of rows.
            with monkeypatch.context() as patch:
                patch.setattr("forvalue_index.shards.scatter.Here.compute", None)
                assert analysed(index) == wanted
            pid = engine.get(searcher.actors[0][1].process.remote())
            dying = threading.Timer(0.05, lambda: os.kill(pid, signal.SIGKILL))
            dying.start()
            values = [index.score(ROWS[:7]).values.value.tolist() for _ in range(5)]
            dying.join()
            assert values == [index.score(ROWS[:7]).values.value.tolist()] * 5
            assert engine.get(searcher.actors[0][1].process.remote()) != pid


def test_a_value_without_a_shard_is_an_error_that_names_it(built: Path) -> None:
    import ray

    with InfluenceIndex.open(built) as index, index.on_ray(partial=True):
        searcher: OnRay = index.store.snapshots._searcher  # type: ignore[attr-defined]
        ray.kill(searcher.actors[1][1])
        with pytest.raises(WorkerError, match=r"shards \[1, 3\] of 4 do not answer"):
            index.score(ROWS[:2])


def test_rows_that_go_meanwhile_are_in_no_answer(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InfluenceIndex.open(built) as index, index.on_ray():
        before, snapshots, looks = index.score(ROWS[:2]).values.ids, index.store.snapshots, []
        refresh = snapshots.refresh

        def late() -> None:
            looks.append(1)
            if len(looks) > 1:
                refresh()

        with InfluenceIndex.open(built) as other:
            assert other.remove("row-5") == 1
            # An answer that began before the row was removed is asked for again.
            monkeypatch.setattr(snapshots, "refresh", late)
            assert len(index.score(ROWS[:2]).values.ids) == len(before) - 1
            assert len(looks) == 2
            assert other.add([ROWS[5]]).added == 1


@pytest.mark.slow
def test_an_answer_without_some_shards_is_asked_for(
    built: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("forvalue_index.cluster.search.SECONDS", 10.0)
    with InfluenceIndex.open(built) as index:
        every = {hit.key for hit in index.query(ROWS[0], k=90)}
        for partial in (False, True):
            with index.on_ray(partial=partial):
                searcher = index.store.snapshots._searcher  # type: ignore[attr-defined]
                ray.kill(searcher.actors[0][1])
                if not partial:
                    with pytest.raises(WorkerError, match=r"shards \[0, 2\] of 4 do not answer"):
                        index.query(ROWS[0], k=90)
                    continue
                some = {hit.key for hit in index.query(ROWS[0], k=90)}
                assert "shards [0, 2] of 4 do not answer" in caplog.text
                assert some < every


@pytest.mark.slow
def test_rows_are_added_and_replaced_and_nodes_may_go(
    ray: Any, built: Path, files: list[Path], tmp_path: Path
) -> None:
    changed = [row | {"response": " changed"} for row in ROWS[:3]]
    new = [row | {"id": f"new-{row['id']}"} for row in ROWS[:20]]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*changed, *new, ROWS[50]]))
    with pytest.raises(KeyConflictError, match="already in the index, with other content"):
        InfluenceIndex.build_on_ray(built, path, None, None)
    node = ray.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    gone = threading.Timer(1.0, lambda: ray.remove_node(node, allow_graceful=False))
    gone.start()
    report = InfluenceIndex.build_on_ray(built, path, None, None, update=True)
    gone.join()
    assert report.samples == 110
    with InfluenceIndex.open(built) as index:
        assert index.get("row-1").row["response"] == " changed"
        assert len(index) == 110
        assert index.verify() == []


def test_files_in_parts_make_the_same_index(
    ray: Any, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    model, seen = ModelConfig(str(model_dir)), list[tuple[str, int, int, int]]()
    lines = [json.dumps(row) + "\n" for row in ROWS[:50]]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[50:]), tmp_path / "b.parquet", 5)
    files = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]

    def built_in(name: str, files: list[Path], **more: Any) -> Any:
        report = seen.append
        return InfluenceIndex.build_on_ray(
            tmp_path / name, files, model, 2, progress=lambda *s: report(s), **SETTINGS | more
        )

    built_in("whole", files)
    assert max(step[2] for step in seen if step[0] == "dealing") == 2
    monkeypatch.setattr("forvalue_index.data.parts.LEAST", 500)
    bad = tmp_path / "bad.jsonl"
    others = "".join(json.dumps(row | {"id": f"x{row['id']}"}) + "\n" for row in ROWS[:30])
    for more, wanted in (
        ("\n" + lines[7], r"bad.jsonl:32: key 'row-7' already occurs at .*a.jsonl:8"),
        ("\n\n{}\n", "bad.jsonl:33: no field 'prompt'"),
    ):
        bad.write_text(others + more)
        seen.clear()
        with pytest.raises((KeyConflictError, RowError), match=wanted):
            built_in("parts", [*files, bad])
        assert max(step[2] for step in seen if step[0] == "dealing") >= 3
    # What was dealt out is not dealt out again.
    seen.clear()
    report = built_in("parts", [*files, bad], on_error="skip")
    assert not [step for step in seen if step[0] in ("dealing", "counting") and step[2]]
    assert (report.samples, report.rejected) == (120, 1)
    assert '"line": 33' in (tmp_path / "parts" / "rejects.jsonl").read_text()
    built_in("again", files)
    found = [exported_in(tmp_path / name, tmp_path) for name in ("whole", "again")]
    assert found[0] == found[1]


def exported_in(path: Path, folder: Path) -> list[Any]:
    with InfluenceIndex.open(path) as index:
        lines, vectors = exported(index, folder)
        return [lines, vectors.tolist()]


def test_bad_input_is_found_across_files(
    ray: Any, files: list[Path], model_dir: Path, tmp_path: Path
) -> None:
    twice, bad = tmp_path / "twice.jsonl", tmp_path / "bad.jsonl"
    twice.write_text(json.dumps(ROWS[4]) + "\n")
    bad.write_text('{"id": "x"}\n')
    model = ModelConfig(str(model_dir))
    for wrong, error, message in (
        (twice, KeyConflictError, r"twice.jsonl:1: key 'row-4' already occurs at .*1.jsonl:2"),
        (bad, RowError, "bad.jsonl:1"),
    ):
        with pytest.raises(error, match=message):
            InfluenceIndex.build_on_ray(tmp_path / "i", [*files, wrong], model, 2, **SETTINGS)
    # The data was put right: the same command goes on.
    report = InfluenceIndex.build_on_ray(
        tmp_path / "i", [*files, bad], model, 2, on_error="skip", **SETTINGS
    )
    assert (report.samples, report.rejected) == (90, 1)
    assert "bad.jsonl" in (tmp_path / "i" / "rejects.jsonl").read_text()
    with pytest.raises(InputError, match="only shards are held on Ray"):
        one, _ = InfluenceIndex.build(tmp_path / "one", ROWS[:5], str(model_dir), **SETTINGS)
        with one, one.on_ray():
            pass
