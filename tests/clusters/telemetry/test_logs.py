"""Log lines: one JSON object for each event, or a line for people, with ids and without credentials."""

from __future__ import annotations

import builtins
import io
import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

import pytest
from ray.serve._private.logging_utils import redirected_print

from toque.clusters.telemetry.logs import ACCESS_LOGGER, AccessLog, LogSettings, current_work, set_up_logs

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Work:
    def identity(self) -> dict[str, str]:
        return {"trace_id": TRACE, "request_id": "order-7"}


@contextmanager
def bare_root() -> Iterator[None]:
    """A root logger as a new process has it; pytest, which adds handlers after the fixtures, gets its own back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def settings(**variables: str) -> LogSettings:
    return LogSettings.of(variables)


@bare_root()
def test_an_event_is_one_json_line_even_with_a_traceback(stream: io.StringIO) -> None:
    set_up_logs("gateway", settings(TOQUE_LOG_FORMAT="json"), stream=stream)
    try:
        raise ValueError("redis://:pa55-word@redis does not answer")  # noqa: TRY301
    except ValueError:
        logging.getLogger("kitchen").exception("order %s\nwas not cooked", 7, extra={"fields": {"table": 12}})
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["role"], found["logger"], found["table"]) == (
        "error",
        "gateway",
        "kitchen",
        12,
    )
    assert found["message"] == "order 7\nwas not cooked"
    assert "ValueError: redis://***@redis does not answer" in found["exception"]
    assert "pa55-word" not in line


@bare_root()
def test_a_line_for_people_says_the_same(stream: io.StringIO) -> None:
    set_up_logs("ticker", settings(), stream=stream)
    current_work.set(Work())
    logging.getLogger("kitchen").warning("Authorization: Bearer abcdefgh12345678 was sent")
    current_work.set(None)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(
        f" WARNING ticker kitchen: Authorization: *** was sent trace_id={TRACE} request_id=order-7"
    )


@bare_root()
def test_a_traceback_for_people_reads_as_python_writes_it_where_serve_has_replaced_print(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "print", redirected_print)
    set_up_logs("ticker", settings(), stream=stream)
    try:
        raise ExceptionGroup("1 workspaces", [OSError("403 Forbidden")])  # noqa: TRY301
    except ExceptionGroup:
        logging.getLogger("kitchen").exception("drain failed")
    lines = stream.getvalue().splitlines()
    assert lines[1] == "  + Exception Group Traceback (most recent call last):"
    assert "    | OSError: 403 Forbidden" in lines


@bare_root()
def test_every_line_written_within_a_request_has_its_ids(stream: io.StringIO) -> None:
    set_up_logs("gateway", settings(TOQUE_LOG_FORMAT="json"), stream=stream)
    current_work.set(Work())
    logging.getLogger("any.where").warning("hot")
    current_work.set(None)
    logging.getLogger("any.where").warning("cold")
    hot, cold = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (hot["trace_id"], hot["request_id"]) == (TRACE, "order-7")
    assert "trace_id" not in cold


@bare_root()
def test_a_span_of_opentelemetry_gives_its_trace_id(stream: io.StringIO) -> None:
    from opentelemetry import trace

    set_up_logs("function", settings(TOQUE_LOG_FORMAT="json"), stream=stream)
    context = trace.SpanContext(int(TRACE, 16), 7, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        logging.getLogger("any.where").warning("hot")
    assert json.loads(stream.getvalue())["trace_id"] == TRACE


@bare_root()
def test_secrets_of_functions_are_masked_by_the_masks_of_the_process(stream: io.StringIO) -> None:
    set_up_logs("function", settings(), [lambda text: text.replace("cheese", "***")], stream=stream)
    logging.getLogger("kitchen").warning("the pantry holds %s", "cheese")
    assert "cheese" not in stream.getvalue()


@bare_root()
def test_the_level_is_a_setting_and_the_access_log_is_written_at_any(stream: io.StringIO) -> None:
    set_up_logs("gateway", settings(TOQUE_LOG_FORMAT="json"), stream=stream)
    logging.getLogger("kitchen").info("not shown")
    AccessLog(1.0).write("POST", "/v2/models/late/infer", 200, 0.0012, model="late", version=3, caller="")
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["logger"], found["level"], found["status"], found["version"]) == (
        ACCESS_LOGGER,
        "info",
        200,
        3,
    )
    assert found["duration_ms"] == 1.2
    assert "caller" not in found


@bare_root()
def test_handlers_that_serve_made_write_the_same_lines_and_keep_no_warning_back(stream: io.StringIO) -> None:
    logger = logging.getLogger("ray.serve")
    before, propagate = logger.handlers[:], logger.propagate
    buffered = MemoryHandler(10, target=logging.StreamHandler(stream), flushLevel=logging.ERROR)
    logger.handlers[:], logger.propagate = [logging.StreamHandler(stream), buffered], False
    try:
        set_up_logs("predictor/late", settings(TOQUE_LOG_FORMAT="json"), stream=io.StringIO())
        logger.warning("no champion of redis://:pa55-word@redis")
    finally:
        logger.handlers[:], logger.propagate = before, propagate
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [each["message"] for each in found] == ["no champion of redis://***@redis"] * 2


@bare_root()
def test_lines_of_a_lower_level_are_shown_when_asked_for(stream: io.StringIO) -> None:
    set_up_logs("gateway", settings(TOQUE_LOG_LEVEL="info"), stream=stream)
    logging.getLogger("kitchen").debug("not shown")
    logging.getLogger("kitchen").info("shown")
    assert stream.getvalue().endswith("kitchen: shown\n")
    assert len(stream.getvalue().splitlines()) == 1


@bare_root()
def test_the_access_log_has_a_share_of_the_requests_and_every_failed_one(stream: io.StringIO) -> None:
    set_up_logs("gateway", settings(), stream=stream)
    log = AccessLog(0.1, chance=random.Random(7))
    for _ in range(2_000):
        log.write("GET", "/models", 200, 0.001)
    assert 150 < len(stream.getvalue().splitlines()) < 250  # 200 expected, 13.4 the standard deviation
    before = len(stream.getvalue().splitlines())
    for _ in range(10):
        log.write("GET", "/models", 503, 0.001)
    assert len(stream.getvalue().splitlines()) == before + 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("TOQUE_LOG_FORMAT", "xml"), ("TOQUE_ACCESS_LOG", "1.5"), ("TOQUE_LOG_LEVEL", "loud")],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*{value}"):
        LogSettings.of({name: value})
