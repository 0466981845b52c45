"""What a user's own program does, as a type checker sees it."""

from __future__ import annotations

from pathlib import Path

from forvalue_index import (
    FormatConfig,
    Hit,
    InfluenceIndex,
    ModelConfig,
    Sampling,
    VectorConfig,
)
from forvalue_index.errors import InputError


def build(folder: Path) -> int:
    """Returns how many rows a new index has."""
    rows = [{"prompt": "Who?", "response": " Ada.", "id": "1"}]
    index, report = InfluenceIndex.build(
        folder,
        rows,
        ModelConfig("model", dtype="float32"),
        format=FormatConfig(key_field="id"),
        vector=VectorConfig(dim=512),
    )
    with index:
        added: int = report.added
        return added + len(index)


def ask(folder: Path) -> list[str]:
    """Returns the keys of what an answer comes from."""
    with InfluenceIndex.open(folder, device="cpu") as index:
        answer = index.respond("Who?", Sampling(max_new_tokens=5))
        hits: list[Hit] = index.query(answer, k=3, metric="cosine", where="id=1")
        try:
            index.get("nobody")
        except InputError as error:
            return [str(error)]
        scores: list[float] = [hit.score for hit in hits]
        assert all(score < 1 for score in scores)
        return [hit.key for hit in hits]


def keep(folder: Path) -> list[int]:
    """Returns the ids of the rows to keep."""
    with InfluenceIndex.open(folder) as index:
        chosen = index.select([{"prompt": "Who?", "response": " Ada."}], budget=1)
        ids: list[int] = chosen.ids.tolist()
        index.remove(where=["id=1"])
        return ids


def share(folder: Path) -> Path:
    """Returns where an index of the hub is."""
    with InfluenceIndex.from_hub("me/an-index", folder, model="me/a-model") as index:
        url: str = index.push("me/another", rows=False).url
        return index.directory / url
