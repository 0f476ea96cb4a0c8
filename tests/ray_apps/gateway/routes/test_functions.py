"""Routes of functions and invocations, without ticker and Ray: the request that waits for an invocation runs it."""

import asyncio
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.functions.runtime import secret
from toque.functions.runtime.durable.invocation import run_pending
from toque.functions.runtime.telemetry import RUNS
from toque.registry import Unavailable

pytestmark = pytest.mark.usefixtures("sample_functions")


async def post(gateway: Gateway, name: str, body: Any, **headers: str) -> Any:
    given = gateway.headers("operator") | {each.replace("_", "-"): value for each, value in headers.items()}
    return await gateway.client.post(f"/functions/{name}", json=body, headers=given)


async def test_a_function_is_described_with_its_schemas(gateway: Gateway) -> None:
    answer = await gateway.client.get("/functions/gateway_add", headers=gateway.headers("viewer"))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["input_schema"]["required"] == ["a"]
    assert told["input_schema"]["properties"]["b"]["default"] == 1
    assert told["output_schema"]["properties"].keys() == {"total", "who"}
    assert told["doc"].startswith("Add two numbers.")
    listed = (await gateway.client.get("/functions", headers=gateway.headers("viewer"))).json()
    assert told in listed


@pytest.mark.parametrize("role", [None, "viewer", "operator", "admin"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_no_request_imports_a_module_by_its_name(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, role: str | None
) -> None:
    mark = tmp_path / "imported"
    monkeypatch.delitem(sys.modules, "strangers_module", raising=False)
    (tmp_path / "strangers_module.py").write_text(f"open({str(mark)!r}, 'w').close()\n\ndef x(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    headers = gateway.headers(role) if role else {}
    answer = await gateway.client.request(method, "/functions/strangers_module:x", json={}, headers=headers)
    assert answer.status_code in {401, 403, 404}, answer.text
    assert not mark.exists()


async def test_a_function_is_found_by_its_full_name_of_this_release_and_the_one_before(
    gateway: Gateway,
) -> None:
    importlib.import_module("toque.functions.tuning.jobs")
    for name in ("toque.functions.tuning.jobs:tune_tabular", "functions.tuning:tune_tabular"):
        answer = await gateway.client.get(f"/functions/{name}", headers=gateway.headers("viewer"))
        assert (answer.status_code, answer.json()["name"]) == (200, "tune_tabular")


async def test_a_call_runs_as_the_caller(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_add", {"a": 2, "b": 3})
    assert (answer.status_code, answer.json()) == (200, {"total": 5, "who": "a-operator"})


async def test_bad_arguments_name_their_fields(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_add", {"a": "many", "c": 1})
    assert answer.status_code == 422
    assert {each["field"] for each in answer.json()["errors"]} >= {"c"}
    answer = await post(gateway, "gateway_add", {"a": "many"})
    assert [each["field"] for each in answer.json()["errors"]] == ["a"]


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[1]", 422), (b'"a"', 422), (b"", 422), (b"\xff\xfe", 400), (b'{"a": NaN}', 400)],
)
async def test_a_body_that_is_not_an_object_is_refused(gateway: Gateway, body: bytes, status: int) -> None:
    answer = await gateway.client.post(
        "/functions/gateway_add", content=body, headers=gateway.headers("operator")
    )
    assert answer.status_code == status, answer.text


async def test_an_integer_beyond_64_bits_arrives_and_returns_whole(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_add", {"a": 10**30})
    assert answer.json()["total"] == 10**30 + 1


async def test_unknown_functions_and_invocations_are_404(gateway: Gateway) -> None:
    assert (await post(gateway, "gateway_none", {})).status_code == 404
    answer = await gateway.client.get("/invocations/none", headers=gateway.headers("viewer"))
    assert answer.status_code == 404
    assert answer.json()["type"] == "unknown-invocation"


async def test_a_refusal_by_the_function_is_409_and_a_failure_is_500(
    gateway: Gateway,
) -> None:
    refused = await post(gateway, "gateway_refuse", {"a": 7})
    assert (refused.status_code, refused.json()["type"]) == (409, "function-refused")
    assert "a=7 is refused" in refused.json()["detail"]
    broken = await post(gateway, "gateway_break", {})
    assert (broken.status_code, broken.json()["type"]) == (500, "function-failed")
    assert "out of gas" in broken.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        *(dict.fromkeys(("index", "key", "attribute", "type", "zero"), 500)).items(),
        *(dict.fromkeys(("lookup", "own", "nested", "other"), 409)).items(),
    ],
)
@pytest.mark.parametrize("durable", [False, True])
async def test_a_bug_of_a_function_is_a_500_and_a_refusal_a_409(
    gateway: Gateway, kind: str, status: int, *, durable: bool
) -> None:
    headers = {"Idempotency_Key": f"bug-{kind}"} if durable else {}
    answer = await post(gateway, "gateway_raise", {"kind": kind}, **headers)
    assert answer.status_code == status, answer.text


async def test_a_bug_of_a_function_is_counted_as_a_failed_run(gateway: Gateway) -> None:
    failed = RUNS.labels("default", "gateway_raise", "failed")
    before = failed._value.get()
    assert (await post(gateway, "gateway_raise", {"kind": "index"})).status_code == 500
    assert failed._value.get() == before + 1


async def test_redis_that_loads_its_data_again_is_a_503_to_be_tried_again(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_load", {})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"] == "redis-away"


async def test_a_refusal_has_the_same_detail_when_the_call_is_durable(gateway: Gateway) -> None:
    now = await post(gateway, "gateway_refuse", {"a": 7})
    durable = await post(gateway, "gateway_refuse", {"a": 7}, Idempotency_Key="k5")
    assert (durable.status_code, durable.json()["type"]) == (409, "invocation-dead")
    assert durable.json()["detail"] == now.json()["detail"]


async def test_json_values_of_another_type_are_not_converted(gateway: Gateway) -> None:
    for wrong in (False, "1", 1.5, None):
        answer = await post(gateway, "gateway_add", {"a": wrong})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "a"), wrong
    assert (await post(gateway, "gateway_add", {"a": 1.0})).json()[
        "total"
    ] == 2  # JSON has one kind of number


async def test_fifty_posts_with_one_key_run_once_and_get_equal_responses(
    gateway: Gateway, tmp_path: Path
) -> None:
    body = {"folder": str(tmp_path), "text": "hello"}
    answers = await asyncio.gather(
        *(post(gateway, "gateway_note", body, Idempotency_Key="k1") for _ in range(50))
    )
    assert {(each.status_code, each.content) for each in answers} == {(200, b"5")}
    assert len({each.headers["location"] for each in answers}) == 1
    assert (tmp_path / "notes").read_text() == "hello\n"


async def test_one_key_with_other_arguments_is_a_conflict(gateway: Gateway, tmp_path: Path) -> None:
    body = {"folder": str(tmp_path), "text": "hello"}
    assert (await post(gateway, "gateway_note", body, Idempotency_Key="k2")).status_code == 200
    other = await post(gateway, "gateway_note", body | {"text": "bye"}, Idempotency_Key="k2")
    assert (other.status_code, other.json()["type"]) == (409, "key-conflict")


@pytest.mark.parametrize("key", ["", "a b", "x" * 300])
async def test_an_invalid_key_is_refused(gateway: Gateway, key: str) -> None:
    answer = await post(gateway, "gateway_add", {"a": 1}, Idempotency_Key=key)
    assert answer.status_code in {400, 422}


async def test_respond_async_accepts_with_the_location_of_the_invocation(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_add", {"a": 1}, Prefer="respond-async", Idempotency_Key="k3")
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    where = answer.headers["location"]
    told = (await gateway.client.get(where, headers=gateway.headers("viewer"))).json()
    assert (told["status"], told["function"], told["caller"]) == ("queued", "gateway_add", "a-operator")
    assert told["arguments"] == {"a": 1, "b": 1}
    waited = await post(gateway, "gateway_add", {"a": 1}, Idempotency_Key="k3")
    assert waited.json() == {"total": 2, "who": "a-operator"}
    told = (await gateway.client.get(where, headers=gateway.headers("viewer"))).json()
    assert (told["status"], told["result"]) == ("succeeded", waited.json())
    assert told["receipt"]["attempts"] == 1


async def test_cancel_and_redrive(gateway: Gateway) -> None:
    where = (await post(gateway, "gateway_add", {"a": 1}, Prefer="respond-async")).headers["location"]
    refused = await gateway.client.post(f"{where}/redrive", headers=gateway.headers("operator"))
    assert (refused.status_code, refused.json()["type"]) == (409, "not-dead")
    cancelled = await gateway.client.delete(where, headers=gateway.headers("operator"))
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    redriven = await gateway.client.post(f"{where}/redrive", headers=gateway.headers("operator"))
    assert (redriven.status_code, redriven.json()["status"]) == (202, "queued")


async def test_dead_invocations_are_listed_with_their_error(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_break", {}, Idempotency_Key="k4")
    assert (answer.status_code, answer.json()["type"]) == (500, "invocation-dead")
    deadline, listed = time.monotonic() + 60, []
    while not listed:  # the index of dead letters is written by the next executor, as by a ticker's
        assert time.monotonic() < deadline
        run_pending(replace(gateway.context, actor="a-operator"))
        listed = (
            await gateway.client.get("/invocations?state=dead", headers=gateway.headers("viewer"))
        ).json()
    assert [(each["function"], each["failure"]["message"]) for each in listed] == [
        ("gateway_break", "out of gas")
    ]
    assert (
        await gateway.client.get("/invocations?state=lazy", headers=gateway.headers("viewer"))
    ).status_code == 422


async def test_a_function_is_called_by_http_only_if_it_is_declared_so(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json", headers=gateway.headers("viewer"))).json()
    listed = (await gateway.client.get("/functions", headers=gateway.headers("viewer"))).json()
    names = {each["name"] for each in listed}
    assert "gateway_add" in names
    assert "gateway_rows" not in names
    assert "/functions/gateway_rows" not in document["paths"]
    for headers in ({}, {"Idempotency_Key": "k9"}, {"Prefer": "respond-async"}):
        answer = await post(gateway, "gateway_rows", {"table": []}, **headers)
        assert (answer.status_code, "@function(http=True)" in answer.json()["detail"]) == (404, True)


async def test_only_who_runs_functions_learns_that_one_is_there_for_python(gateway: Gateway) -> None:
    for name in ("gateway_rows", "nothing"):
        told = await gateway.client.get(f"/functions/{name}", headers=gateway.headers("viewer"))
        assert (told.status_code, "http=True" in told.json()["detail"]) == (404, False)


@pytest.mark.parametrize(
    ("name", "role", "status"),
    [
        ("gateway_read", "viewer", 200),
        ("gateway_read", "caller", 403),
        ("gateway_add", "viewer", 403),
        ("gateway_add", "operator", 200),
        ("gateway_govern", "operator", 403),
        ("gateway_govern", "admin", 200),
    ],
)
async def test_a_function_takes_the_role_that_it_declares(
    gateway: Gateway, name: str, role: str, status: int
) -> None:
    answer = await gateway.client.post(f"/functions/{name}", json={"a": 1}, headers=gateway.headers(role))
    assert answer.status_code == status, answer.text
    malformed = await gateway.client.post(f"/functions/{name}", content=b"{", headers=gateway.headers(role))
    assert malformed.status_code == (403 if status == 403 else 400)


async def test_a_durable_call_takes_an_operator_also_of_a_function_for_viewers(gateway: Gateway) -> None:
    for headers in ({"Idempotency-Key": "k10"}, {"Prefer": "respond-async"}):
        given = gateway.headers("viewer") | headers
        answer = await gateway.client.post("/functions/gateway_read", json={"a": 1}, headers=given)
        assert (answer.status_code, "needs operator" in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize("headers", [{"Idempotency_Key": "k11"}, {"Prefer": "respond-async"}], ids=str)
async def test_nothing_of_a_call_is_stored_whose_arguments_nothing_may_keep(
    gateway: Gateway, headers: dict[str, str]
) -> None:
    assert (await post(gateway, "gateway_private", {"who": "mallory-4711"})).json() == 12
    refused = await post(gateway, "gateway_private", {"who": "mallory-4711"}, **headers)
    assert (refused.status_code, "call it directly" in refused.json()["detail"]) == (409, True)
    taken = await post(gateway, "gateway_add", {"a": 4711}, **headers)
    assert taken.status_code in {200, 202}
    stored = [gateway.context.store.get(key) for key in gateway.context.store.list("")]
    assert [each for each in stored if b"mallory" in each] == []
    assert [each for each in stored if b"4711" in each]


@pytest.mark.parametrize("at", ["2026-01-31T18:00:00Z", "2026-01-31T19:00:00.000000+01:00"])
async def test_a_time_is_taken_in_any_form_that_is_documented(gateway: Gateway, at: str) -> None:
    answer = await post(gateway, "gateway_since", {"at": at})
    assert (answer.status_code, answer.json()) == (200, "2026-01-31T18:00:00+00:00")
    assert (await post(gateway, "gateway_since", {"at": None})).json() is None


@pytest.mark.parametrize("at", [5, 1.5, "5", "2026-01-31T18:00:00", "yesterday", True, []])
async def test_what_is_no_time_is_refused_by_name(gateway: Gateway, at: Any) -> None:
    answer = await post(gateway, "gateway_since", {"at": at})
    assert (answer.status_code, "gateway_since: at" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("disclosed", ["else", "the environment variable"])
async def test_what_is_not_set_up_is_no_failure_of_the_function(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, disclosed: str
) -> None:
    """Neither where the text of the refusal holds what is another function's secret, and is masked."""
    monkeypatch.setattr(secret, "_disclosed", frozenset({disclosed}))
    answer = await post(gateway, "gateway_secret", {})
    assert answer.status_code == 409, answer.text
    assert "GATEWAY_SECRET_THAT_NOBODY_SET" in answer.json()["detail"]


async def test_what_a_model_in_a_function_refuses_is_said_by_field(gateway: Gateway) -> None:
    answer = await post(gateway, "gateway_whom", {"unit": "u"})
    told = "gateway_whom: unit: String should have at least 3 characters"
    assert (answer.status_code, answer.json()["detail"]) == (409, told)


@pytest.mark.parametrize(
    ("name", "told"),
    [("gateway_lock", "this error holds a lock"), ("gateway_handle", "InvalidResult: ")],
    ids=["an error that cannot be pickled", "a result that cannot be serialized"],
)
async def test_an_error_or_result_that_cannot_be_pickled_is_reported(
    gateway: Gateway, name: str, told: str
) -> None:
    now = await post(gateway, name, {})
    assert (now.status_code, now.json()["type"], told in now.json()["detail"]) == (
        500,
        "function-failed",
        True,
    )
    durable = await post(gateway, name, {}, Idempotency_Key="k6")
    assert (durable.status_code, durable.json()["type"]) == (500, "invocation-dead")
    assert told in durable.json()["detail"]


async def test_invocations_are_listed_newest_first(gateway: Gateway, tmp_path: Path) -> None:
    ids = []
    for number in range(4):
        body = {"folder": str(tmp_path), "text": str(number)}
        answer = await post(gateway, "gateway_note", body, Prefer="respond-async")
        ids.append(answer.json()["id"])
    for limit in (1, 3, 10_000):
        path = f"/invocations?limit={limit}"
        listed = (await gateway.client.get(path, headers=gateway.headers("viewer"))).json()
        assert [each["id"] for each in listed] == ids[::-1][:limit]


async def test_a_body_above_the_limit_calls_no_function(gateway: Gateway, tmp_path: Path) -> None:
    body = {"folder": str(tmp_path), "text": "x" * (17 << 20)}
    for headers in ({}, {"Idempotency_Key": "k7"}):
        answer = await post(gateway, "gateway_note", body, **headers)
        assert (answer.status_code, "larger than" in answer.json()["detail"]) == (413, True)
    assert not (tmp_path / "notes").exists()
    listed = (await gateway.client.get("/invocations", headers=gateway.headers("viewer"))).json()
    assert listed == []


@pytest.mark.parametrize("request_number", range(4))
async def test_a_store_that_is_away_is_503_and_the_key_makes_the_retry_safe(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_number: int
) -> None:
    """Whichever of the first requests to the store fails, the response is either the result or 503 with Retry-After."""
    body = {"folder": str(tmp_path), "text": "hello"}
    asked, create, find = [], gateway.context.store.create, gateway.context.store.find

    def away(method: Any) -> Any:
        def called(key: str, *data: bytes) -> Any:
            asked.append(key)
            if len(asked) == request_number + 1:
                raise Unavailable("503 Slow Down")
            return method(key, *data)

        return called

    await gateway.client.get("/models", headers=gateway.headers("operator"))  # caches the token
    with monkeypatch.context() as patched:
        patched.setattr(gateway.context.store, "create", away(create))
        patched.setattr(gateway.context.store, "find", away(find))
        answer = await post(gateway, "gateway_note", body, Idempotency_Key="k8")
    assert len(asked) > request_number
    if answer.status_code != 200:
        assert (answer.status_code, answer.json()["type"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
    assert (await post(gateway, "gateway_note", body, Idempotency_Key="k8")).json() == 5
    assert (tmp_path / "notes").read_text() == "hello\n"


async def test_functions_that_cannot_be_imported_are_503_with_the_reason(gateway: Gateway) -> None:
    services = gateway.app.state.services

    def broken() -> None:
        raise ImportError("no module 'examples.flihgts'")

    services.discover, services._discovered = broken, False
    for path in ("/functions", "/openapi.json"):
        answer = await gateway.client.get(path, headers=gateway.headers("viewer"))
        assert (answer.status_code, answer.json()["type"]) == (503, "functions-missing")
        assert "flihgts" in answer.json()["detail"]
    assert (await gateway.client.get("/models", headers=gateway.headers("viewer"))).status_code == 200


async def test_openapi_has_every_function_with_schemas_that_resolve(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json", headers=gateway.headers("viewer"))).json()
    operation = document["paths"]["/functions/gateway_add"]["post"]
    assert operation["summary"] == "Add two numbers."
    assert operation["x-toque-role"] == ["operator"]
    schemas = document["components"]["schemas"]
    assert schemas["gateway_add_arguments"]["required"] == ["a"]
    for reference in _references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [each for item in value.values() for each in _references(item)]
    return [each for item in value for each in _references(item)] if isinstance(value, list) else []
