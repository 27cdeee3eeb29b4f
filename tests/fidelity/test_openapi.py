"""Our OpenAPI document: the same as the routes, the errors and the headers, and kept under schemathesis."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Match, Route

from gateway import errors
from gateway.app import create_app
from gateway.control import Mode
from gateway.decide import Lane
from gateway.endpoints.openapi import DOCUMENT
from policies.types import Reason
from tests.fidelity.conftest import ADMIN_KEY
from tests.fidelity.conftest import Route as Way
from tests.fidelity.world import FORMS, STRANGE, World
from tests.serving import ThreadedGateway, make_settings

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document."""
    found: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return found


@pytest.fixture
def routes(tmp_path: Any) -> list[Route]:
    """The gateway's routes."""
    app = create_app(make_settings(tmp_path, {"admin": {"key_env": "ADMIN_KEY"}}), {"ADMIN_KEY": ADMIN_KEY})
    return [route for route in app.routes if isinstance(route, Route)]


def test_it_is_served(document: dict[str, Any], gateway: ThreadedGateway) -> None:
    """As JSON, to everybody."""
    answer = httpx.get(f"{gateway.url}/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == document


def test_every_route_is_in_it(document: dict[str, Any], routes: list[Route]) -> None:
    """With exactly its methods; what is relayed has no list."""
    for route in routes:
        if route.methods is not None:
            methods = {method.lower() for method in route.methods - {"HEAD"}}
            assert document["paths"][route.path].keys() == methods, route.path


def test_everything_in_it_has_a_route(document: dict[str, Any], routes: list[Route]) -> None:
    """Its paths under /v1 that we do not read are relayed."""
    for path, operations in document["paths"].items():
        for method in operations:
            scope = {"type": "http", "path": path, "method": method.upper(), "headers": []}
            assert any(route.matches(scope)[0] is Match.FULL for route in routes), path


def test_every_error_is_in_it(document: dict[str, Any]) -> None:
    """Under its status, with its code; and each operation that takes a body names those it may end in."""
    described: dict[str, str] = {}
    for name, found in document["components"]["responses"].items():
        described[f"#/components/responses/{name}"] = found["description"]
    promote = document["paths"]["/admin/projects/{project}/promote"]["post"]["responses"]
    known = promote | document["paths"]["/v1/chat/completions"]["post"]["responses"]
    for kind in _subclasses(errors.AnswerableError):
        place = known.get(str(kind.status)) or {"$ref": "#/components/responses/MethodNotAllowed"}
        assert f"`{kind.code}`" in described[place["$ref"]], kind


def _subclasses(kind: type[errors.AnswerableError]) -> Iterator[type[errors.AnswerableError]]:
    for found in kind.__subclasses__():
        yield found
        yield from _subclasses(found)


def test_every_word_of_the_headers_is_in_it(document: dict[str, Any]) -> None:
    """Lanes, reasons and modes are closed lists."""
    headers, parameters = document["components"]["headers"], document["components"]["parameters"]
    assert set(headers["x-tracer-reason"]["schema"]["enum"]) == {*Reason, "none"}
    assert set(headers["x-tracer-lane"]["schema"]["enum"]) == {*Lane, "none"}
    assert parameters["Mode"]["schema"]["enum"] == list(Mode)


def test_every_header_is_in_it(document: dict[str, Any], through: Way, world: World) -> None:
    """Of handled and forwarded answers, explained."""
    known = {name for name in document["components"]["headers"] if name.startswith("x-tracer-")}
    asked = {"x-tracer-explain": "true"}
    seen: set[str] = set()
    for text in (world.known["text"], STRANGE):
        answer = httpx.post(f"{through.base_url}/chat/completions", json=FORMS["text"].chat(text), headers=asked)
        seen |= {name for name in answer.headers if name.startswith("x-tracer-")}
    assert seen == known


def test_handled_answers_are_as_it_says(document: dict[str, Any], through: Way, world: World) -> None:
    """Every form's chat completion and response, against the document's own schemas."""
    for form in FORMS.values():
        text = world.known[form.name]
        for path, body, name in (
            ("/chat/completions", form.chat(text), "ChatCompletion"),
            ("/responses", form.responses(text), "Response"),
        ):
            answer = httpx.post(through.base_url + path, json=body)
            assert answer.headers["x-tracer-decision"] == "handled"
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            jsonschema_rs.validate(schema, answer.json())


OPERATIONS = [
    f"{method.upper()} {path}"
    for path, operations in json.loads(DOCUMENT.read_text())["paths"].items()
    for method in operations
    if path != "/openapi.json"  # schemathesis asks for it as it is
]


@pytest.fixture(scope="module")
def operations(gateway: ThreadedGateway) -> dict[str, Any]:
    """The document's operations by name, as schemathesis reads them from the running gateway."""
    schema = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    found = [operation.ok() for operation in schema.get_all_operations() if isinstance(operation, Ok)]
    return {operation.label: operation for operation in found}


@pytest.mark.parametrize("name", OPERATIONS)
def test_schemathesis_finds_nothing(operations: dict[str, Any], name: str) -> None:
    """No 5xx, and every status, content type, header and body as the document has it."""

    @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operations[name].as_strategy() | operations[name].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case: Any) -> None:
        headers = {"x-script": "openai"}
        if name.split()[1].startswith("/admin"):
            headers["authorization"] = f"Bearer {ADMIN_KEY}"
        case.call_and_validate(checks=_CHECKS, headers=headers)

    ask()
