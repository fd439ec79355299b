"""What the log says of a failure: why, and where in the code; and never what texts, or an endpoint's answer, said."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from r1ranker.serving.app import JsonLines
from serving_server import Server

SECRET = "a private matter 4711"


def line_of(served: Server, request_id: str) -> dict[str, Any]:
    """The line of a request, which is written after its answer."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for line in served.lines():
            if line.get("request_id") == request_id:
                return line
        time.sleep(0.05)
    raise AssertionError("no line has this request id")


def test_the_log_says_why_a_ranker_failed_under_the_request_id(served: Server) -> None:
    asked = {"query": SECRET, "documents": ["a", SECRET], "model": "refused"}
    status, headers, answer = served.post("/rerank", asked)
    line = line_of(served, headers["x-request-id"])
    assert (status, line["status"], line["level"], line["path"]) == (502, 502, "error", "/rerank")
    assert line["answered"] == answer["message"]
    assert line["endpoint_status"] == 401
    assert line["causes"][0]["type"] == "CallError"
    assert any("openai_.py" in frame for frame in line["causes"][0]["frames"])
    log = served.log.read_text()
    assert SECRET not in log
    assert "the secret of the endpoint" not in log


def test_a_refusal_is_no_failure(served: Server) -> None:
    _, headers, _ = served.post("/rerank", {"query": "", "documents": ["a"]})
    line = line_of(served, headers["x-request-id"])
    assert (line["status"], line["level"]) == (400, "info")
    assert "causes" not in line


def test_a_line_has_the_frames_of_an_exception_and_of_its_causes_and_no_message() -> None:
    def fails() -> None:
        raise ValueError(SECRET)

    try:
        try:
            fails()
        except ValueError as error:
            raise RuntimeError(SECRET) from error
    except RuntimeError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("r1ranker", logging.ERROR, __file__, 1, "it failed", None, info)
    line = JsonLines().format(record)
    told = json.loads(line)
    assert told["message"] == "it failed"
    assert [cause["type"] for cause in told["causes"]] == ["RuntimeError", "ValueError"]
    assert told["causes"][1]["frames"][-1].endswith(" fails")
    assert f"{__file__}:" in told["causes"][1]["frames"][-1]
    assert SECRET not in line
