"""Functions and invocations by HTTP. No ticker and no Ray: whoever waits for an invocation runs it."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture(autouse=True, scope="module")
def _toys() -> None:
    if "gateway_toys" not in sys.modules:
        spec = importlib.util.spec_from_file_location("gateway_toys", TOYS)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["gateway_toys"] = module
        spec.loader.exec_module(module)


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
    assert (refused.status_code, refused.json()["type"]) == (422, "function-refused")
    assert "a=7 is not to my taste" in refused.json()["detail"]
    broken = await post(platform, "gateway_break", {})
    assert (broken.status_code, broken.json()["type"]) == (500, "function-failed")
    assert "out of gas" in broken.json()["detail"]


async def test_one_key_runs_once_and_answers_all(platform: Any, tmp_path: Path) -> None:
    body = {"folder": str(tmp_path), "text": "hello"}
    answers = await asyncio.gather(
        *(post(platform, "gateway_note", body, Idempotency_Key="k1") for _ in range(10))
    )
    assert {(each.status_code, each.json()) for each in answers} == {(200, 5)}
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
