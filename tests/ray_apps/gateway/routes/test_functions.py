"""Functions and invocations by HTTP. No ticker and no Ray: whoever waits for an invocation runs it."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.runtime.durable.invocation import run_pending
from registry import Unavailable

pytestmark = pytest.mark.usefixtures("toys")


async def post(platform: Any, name: str, body: Any, **headers: str) -> Any:
    given = platform.of("operator") | {each.replace("_", "-"): value for each, value in headers.items()}
    return await platform.client.post(f"/functions/{name}", json=body, headers=given)


async def test_a_function_is_described_with_its_schemas(platform: Any) -> None:
    answer = await platform.client.get("/functions/gateway_add", headers=platform.of("viewer"))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["input_schema"]["required"] == ["a"]
    assert told["input_schema"]["properties"]["b"]["default"] == 1
    assert told["output_schema"]["properties"].keys() == {"total", "who"}
    assert told["doc"].startswith("Add two numbers.")
    listed = (await platform.client.get("/functions", headers=platform.of("viewer"))).json()
    assert told in listed


async def test_a_call_runs_as_the_caller(platform: Any) -> None:
    answer = await post(platform, "gateway_add", {"a": 2, "b": 3})
    assert (answer.status_code, answer.json()) == (200, {"total": 5, "who": "a-operator"})


async def test_bad_arguments_name_their_fields(platform: Any) -> None:
    answer = await post(platform, "gateway_add", {"a": "many", "c": 1})
    assert answer.status_code == 422
    assert {each["field"] for each in answer.json()["errors"]} >= {"c"}
    answer = await post(platform, "gateway_add", {"a": "many"})
    assert [each["field"] for each in answer.json()["errors"]] == ["a"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[1]", 422), (b'"a"', 422), (b"", 422), (b"\xff\xfe", 400), (b'{"a": NaN}', 400)],
)
async def test_a_body_that_is_no_object_is_refused(platform: Any, body: bytes, status: int) -> None:
    answer = await platform.client.post(
        "/functions/gateway_add", content=body, headers=platform.of("operator")
    )
    assert answer.status_code == status, answer.text


async def test_an_integer_beyond_64_bits_arrives_and_returns_whole(platform: Any) -> None:
    answer = await post(platform, "gateway_add", {"a": 10**30})
    assert answer.json()["total"] == 10**30 + 1


async def test_unknown_functions_and_invocations_are_404(platform: Any) -> None:
    assert (await post(platform, "gateway_none", {})).status_code == 404
    answer = await platform.client.get("/invocations/none", headers=platform.of("viewer"))
    assert answer.status_code == 404
    assert answer.json()["type"] == "unknown-invocation"


async def test_a_function_that_refuses_is_the_callers_problem_one_that_breaks_is_not(platform: Any) -> None:
    refused = await post(platform, "gateway_refuse", {"a": 7})
    assert (refused.status_code, refused.json()["type"]) == (409, "function-refused")
    assert "a=7 is not to my taste" in refused.json()["detail"]
    broken = await post(platform, "gateway_break", {})
    assert (broken.status_code, broken.json()["type"]) == (500, "function-failed")
    assert "out of gas" in broken.json()["detail"]


async def test_a_refusal_is_the_same_whether_the_call_was_durable_or_not(platform: Any) -> None:
    now = await post(platform, "gateway_refuse", {"a": 7})
    durable = await post(platform, "gateway_refuse", {"a": 7}, Idempotency_Key="k5")
    assert (durable.status_code, durable.json()["type"]) == (409, "invocation-dead")
    assert durable.json()["detail"] == now.json()["detail"]


async def test_json_is_not_converted_to_fit(platform: Any) -> None:
    for wrong in (False, "1", 1.5, None):
        answer = await post(platform, "gateway_add", {"a": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "a"), wrong
    assert (await post(platform, "gateway_add", {"a": 1.0})).json()[
        "total"
    ] == 2  # JSON has one kind of number


async def test_fifty_posts_with_one_key_are_one_run_and_fifty_equal_answers(
    platform: Any, tmp_path: Path
) -> None:
    body = {"folder": str(tmp_path), "text": "hello"}
    answers = await asyncio.gather(
        *(post(platform, "gateway_note", body, Idempotency_Key="k1") for _ in range(50))
    )
    assert {(each.status_code, each.content) for each in answers} == {(200, b"5")}
    assert len({each.headers["location"] for each in answers}) == 1
    assert (tmp_path / "notes").read_text() == "hello\n"


async def test_one_key_with_other_arguments_is_a_conflict(platform: Any, tmp_path: Path) -> None:
    body = {"folder": str(tmp_path), "text": "hello"}
    assert (await post(platform, "gateway_note", body, Idempotency_Key="k2")).status_code == 200
    other = await post(platform, "gateway_note", body | {"text": "bye"}, Idempotency_Key="k2")
    assert (other.status_code, other.json()["type"]) == (409, "key-conflict")


@pytest.mark.parametrize("key", ["", "a b", "x" * 300])
async def test_a_key_that_cannot_be_one_is_refused(platform: Any, key: str) -> None:
    answer = await post(platform, "gateway_add", {"a": 1}, Idempotency_Key=key)
    assert answer.status_code in {400, 422}


async def test_respond_async_accepts_and_tells_where_to_ask(platform: Any) -> None:
    answer = await post(platform, "gateway_add", {"a": 1}, Prefer="respond-async", Idempotency_Key="k3")
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    where = answer.headers["location"]
    told = (await platform.client.get(where, headers=platform.of("viewer"))).json()
    assert (told["status"], told["function"], told["caller"]) == ("queued", "gateway_add", "a-operator")
    assert told["arguments"] == {"a": 1, "b": 1}
    waited = await post(platform, "gateway_add", {"a": 1}, Idempotency_Key="k3")
    assert waited.json() == {"total": 2, "who": "a-operator"}
    told = (await platform.client.get(where, headers=platform.of("viewer"))).json()
    assert (told["status"], told["result"]) == ("succeeded", waited.json())
    assert told["receipt"]["attempts"] == 1


async def test_cancel_and_redrive(platform: Any) -> None:
    where = (await post(platform, "gateway_add", {"a": 1}, Prefer="respond-async")).headers["location"]
    refused = await platform.client.post(f"{where}/redrive", headers=platform.of("operator"))
    assert (refused.status_code, refused.json()["type"]) == (409, "not-dead")
    cancelled = await platform.client.delete(where, headers=platform.of("operator"))
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    redriven = await platform.client.post(f"{where}/redrive", headers=platform.of("operator"))
    assert (redriven.status_code, redriven.json()["status"]) == (202, "queued")


async def test_the_dead_are_listed_with_their_error(platform: Any) -> None:
    answer = await post(platform, "gateway_break", {}, Idempotency_Key="k4")
    assert (answer.status_code, answer.json()["type"]) == (500, "invocation-dead")
    deadline, listed = time.monotonic() + 10, []
    while not listed:  # whose index an executor writes when it next looks, as a ticker's does
        assert time.monotonic() < deadline
        run_pending(replace(platform.context, actor="a-operator"))
        listed = (await platform.client.get("/invocations?state=dead", headers=platform.of("viewer"))).json()
    assert [(each["function"], each["failure"]["message"]) for each in listed] == [
        ("gateway_break", "out of gas")
    ]
    assert (
        await platform.client.get("/invocations?state=lazy", headers=platform.of("viewer"))
    ).status_code == 422


async def test_a_function_that_json_cannot_carry_is_for_python_callers_only(platform: Any) -> None:
    listed = (await platform.client.get("/functions", headers=platform.of("viewer"))).json()
    assert "gateway_rows" not in {each["name"] for each in listed}
    told = await platform.client.get("/functions/gateway_rows", headers=platform.of("viewer"))
    assert (told.status_code, "JSON Schema" in told.json()["detail"]) == (422, True)
    assert (await post(platform, "gateway_rows", {"table": []})).status_code == 422


@pytest.mark.parametrize(
    ("name", "told"),
    [("gateway_lock", "the door is locked"), ("gateway_handle", "InvalidResult: ")],
    ids=["an error that cannot be pickled", "a result that is no value"],
)
async def test_what_cannot_leave_its_process_is_told(platform: Any, name: str, told: str) -> None:
    now = await post(platform, name, {})
    assert (now.status_code, now.json()["type"], told in now.json()["detail"]) == (
        500,
        "function-failed",
        True,
    )
    durable = await post(platform, name, {}, Idempotency_Key="k6")
    assert (durable.status_code, durable.json()["type"]) == (500, "invocation-dead")
    assert told in durable.json()["detail"]


async def test_a_body_above_the_limit_calls_nothing(platform: Any, tmp_path: Path) -> None:
    body = {"folder": str(tmp_path), "text": "x" * (17 << 20)}
    for headers in ({}, {"Idempotency_Key": "k7"}):
        answer = await post(platform, "gateway_note", body, **headers)
        assert (answer.status_code, "larger than" in answer.json()["detail"]) == (413, True)
    assert not (tmp_path / "notes").exists()
    listed = (await platform.client.get("/invocations", headers=platform.of("viewer"))).json()
    assert listed == []


@pytest.mark.parametrize("request_number", range(4))
async def test_a_store_that_is_away_is_503_and_the_key_makes_the_retry_safe(
    platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_number: int
) -> None:
    """Whichever of the first requests to the store fails, the answer is either good or says to come again."""
    body = {"folder": str(tmp_path), "text": "hello"}
    asked, create, find = [], platform.context.store.create, platform.context.store.find

    def away(method: Any) -> Any:
        def called(key: str, *data: bytes) -> Any:
            asked.append(key)
            if len(asked) == request_number + 1:
                raise Unavailable("503 Slow Down")
            return method(key, *data)

        return called

    await platform.client.get("/models", headers=platform.of("operator"))  # the doorman knows the token now
    with monkeypatch.context() as patched:
        patched.setattr(platform.context.store, "create", away(create))
        patched.setattr(platform.context.store, "find", away(find))
        answer = await post(platform, "gateway_note", body, Idempotency_Key="k8")
    assert len(asked) > request_number
    if answer.status_code != 200:
        assert (answer.status_code, answer.json()["type"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
    assert (await post(platform, "gateway_note", body, Idempotency_Key="k8")).json() == 5
    assert (tmp_path / "notes").read_text() == "hello\n"


async def test_functions_that_cannot_be_imported_are_503_with_the_reason(platform: Any) -> None:
    services = platform.app.state.services

    def broken() -> None:
        raise ImportError("no module 'examples.flihgts'")

    services.discover, services._discovered = broken, False
    for path in ("/functions", "/openapi.json"):
        answer = await platform.client.get(path, headers=platform.of("viewer"))
        assert (answer.status_code, answer.json()["type"]) == (503, "functions-missing")
        assert "flihgts" in answer.json()["detail"]
    assert (await platform.client.get("/models", headers=platform.of("viewer"))).status_code == 200


async def test_openapi_has_every_function_with_schemas_that_resolve(platform: Any) -> None:
    document = (await platform.client.get("/openapi.json", headers=platform.of("viewer"))).json()
    operation = document["paths"]["/functions/gateway_add"]["post"]
    assert operation["summary"] == "Add two numbers."
    schemas = document["components"]["schemas"]
    assert schemas["gateway_add_arguments"]["required"] == ["a"]
    for reference in _references(document):
        assert reference.startswith("#/components/schemas/"), reference
        assert reference.removeprefix("#/components/schemas/") in schemas


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for item in value.values() for each in _references(item)]
    return [each for item in value for each in _references(item)] if isinstance(value, list) else []
