"""Errors as the client sees them."""

import json

from gateway.errors import InvalidRequest, NotFound


def test_an_error_is_openais_object() -> None:
    """Message, type, param and code."""
    body = json.loads(InvalidRequest("No.", param="model").body())
    assert body == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": "model", "code": "invalid_request"}
    }
    assert json.loads(NotFound("No.").body())["error"]["param"] is None


def test_a_lone_surrogate_is_told_as_an_escape() -> None:
    """A client's JSON may hold one, UTF-8 cannot."""
    error = json.loads(InvalidRequest("no '\ud800\u00e9'", param="\ud800").body())["error"]
    assert (error["message"], error["param"]) == ("no '\\ud800\u00e9'", "\\ud800")
