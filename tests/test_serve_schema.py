"""The API keeps what its own OpenAPI schema says, whatever is sent to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from helpers.indexes import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from starlette.testclient import TestClient

from forvalue_index import InfluenceIndex
from forvalue_index.model.language_model import LanguageModel
from forvalue_index.server.app import create_app
from forvalue_index.server.guard import Admission

EXAMPLES = 24  # requests to each path
ROWS = [{"id": f"row-{n}", "prompt": f"a {n}", "response": f" b{n}", "n": n} for n in range(8)]

load_all_checks()
MEANT = [
    check
    for name, check in zip(CHECKS.get_all_names(), CHECKS.get_all(), strict=True)
    # A request may be as the schema says and name a row that is not there.
    if name not in ("positive_data_acceptance", "ensure_resource_availability", "use_after_free")
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel) -> Iterator[Any]:
    """The schema of a server that may be written to, and the server."""
    place = tmp_path_factory.mktemp("served") / "index"
    with InfluenceIndex.build(place, ROWS, lm, **SETTINGS)[0] as index:
        app = create_app(index, Admission({"localhost", "testserver"}), allow_write=True)
        with TestClient(app):  # which begins and ends it
            yield schemathesis.openapi.from_asgi("/api/openapi.json", app)


ASKED = {"prompt": "a b", "response": " c"}
TYPICAL = {
    "/api/query": ASKED,
    "/api/explain": ASKED | {"key": "row-1", "terms": True},
    "/api/ask": {"prompt": "a b"},
    "/api/row": {"key": "row-1"},
    "/api/score": {"targets": [ASKED]},
    "/api/decisions": {"key": "row-1"},
}
ODD = {"text", "row", "label", "images", "span", "tokens", "characters", "where"}


def typical(case: Any, path: str) -> Any:
    """A request that names what is there, so that more than refusals are seen."""
    wanted = TYPICAL.get(path, {})
    if case.method == "GET" and wanted:
        case.query = dict(case.query or {}) | wanted
    elif isinstance(case.body, dict):
        kept = {name: value for name, value in case.body.items() if not wanted or name not in ODD}
        case.body = kept | wanted
    return case


def test_answers_are_as_the_schema_says(api: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    place, statuses = str(tmp_path_factory.getbasetemp()), Counter[int]()
    for found in api.get_all_operations():
        operation = found.ok()
        path = operation.path
        free = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        strategy = st.one_of(free, free.map(lambda case, path=path: typical(case, path)))
        if operation.body or operation.query:  # or else nothing can be wrong with a request
            strategy = st.one_of(strategy, wrong)

        @given(strategy)
        @settings(max_examples=EXAMPLES)
        def check(case: Any) -> None:
            answer = case.call(timeout=120)  # seconds; the machine may be busy
            case.validate_response(answer, checks=MEANT)
            statuses[answer.status_code] += 1
            if answer.status_code >= 400:
                said = json.loads(answer.content)
                assert set(said) == {"error"} and said["error"] and "\n" not in said["error"]
                assert place not in answer.text

        check()
    assert min(statuses[200], statuses[404], statuses[422]) > 20 and statuses[202] > 5
