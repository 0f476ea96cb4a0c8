"""The audit as the gateway gives it: whose entries an admin sees, filtered and exported."""

import csv
import json
import time
from datetime import timedelta
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import NOW, Gateway
from toque.registry import Access, Grant, Registry

SINCE = "2000-01-01T00:00:00Z"


async def read(gateway: Gateway, token: str | None = None, **query: Any) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token or gateway.tokens['admin']}"}
    answer = await gateway.client.get("/audit", headers=headers, params={"since": SINCE, **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


@pytest.mark.parametrize("zone", ["%2B23:59", "-23:59", "Z"])
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"])
async def test_a_time_at_the_ends_of_the_calendar_is_answered_or_refused(
    gateway: Gateway, moment: str, zone: str
) -> None:
    headers = gateway.headers("admin")
    registry = gateway.context.registry()
    registry.create_model("late")
    for path in (
        f"/audit?since={moment}{zone}",
        f"/audit?kind=model&since={moment}{zone}&until={moment}{zone}",
        f"/models/late/aliases/champion?at={moment}{zone}",
    ):
        assert (await gateway.client.get(path, headers=headers)).status_code in {200, 404, 422}, path
    body = {
        "name": "t",
        "grants": ["caller:default"],
        "expires_at": f"{moment}{zone}".replace("%2B", "+"),
    }
    assert (await gateway.client.post("/tokens", headers=headers, json=body)).status_code in {201, 409, 422}


async def refused(gateway: Gateway, path: str, headers: dict[str, str], status: int) -> None:
    assert (await gateway.client.get(path, headers=headers)).status_code == status


async def test_a_refusal_can_be_read_with_who_what_and_where(gateway: Gateway) -> None:
    await refused(gateway, "/tokens", gateway.headers("viewer"), 403)
    deadline = time.monotonic() + 60
    while not (found := await read(gateway, kind="refusal", actor="a-viewer")):
        assert time.monotonic() < deadline
    (entry,) = found
    assert (entry["what"], entry["status"], entry["workspace"]) == ("gateway: GET /tokens", 403, "default")


async def test_an_admin_sees_only_what_concerns_its_workspace(gateway: Gateway) -> None:
    access: Access = gateway.app.state.services.access_list
    for name in ("payments", "search"):
        access.create_workspace(name)
        Registry(gateway.context.store.within(f"workspaces/{name}"), actor=name).create_model(f"{name}-model")
    token = access.create_token("pay-admin", "admin", workspace="payments")
    whole = access.create_token("all", grants=(Grant.parse("admin:*"),))
    seen = await read(gateway, token)
    assert {each["workspace"] for each in seen} == {"payments"}
    assert [each["what"] for each in seen if each["kind"] == "model"] == ["model-created: payments-model"]
    everything = {each["what"] for each in await read(gateway, whole, everywhere=True)}
    assert {
        "model-created: payments-model",
        "model-created: search-model",
        "token created: all",
    } <= everything
    headers = {"Authorization": f"Bearer {token}"}
    await refused(gateway, "/audit?everywhere=true", headers, 403)
    await refused(gateway, "/audit", headers | {"X-Toque-Workspace": "search"}, 403)


async def test_the_audit_is_newest_first_bounded_and_cut_by_time(gateway: Gateway) -> None:
    registry = Registry(gateway.context.store, actor="ada", clock=gateway.context.clock)
    for number in range(5):
        registry.create_model(f"m{number}")
    found = await read(gateway, kind="model", limit=3)
    assert [each["at"] for each in found] == sorted((each["at"] for each in found), reverse=True)
    assert len(found) == 3
    assert await read(gateway, kind="model", until=NOW.isoformat()) == []


async def test_pages_of_the_audit_lose_none_of_the_entries_of_one_moment(gateway: Gateway) -> None:
    moments = [NOW + timedelta(seconds=number // 3) for number in range(12)]
    clock = iter(moments)
    registry = Registry(gateway.context.store, actor="ada", clock=lambda: next(clock))
    for number in range(12):
        registry.create_model(f"m{number}")
    seen: list[str] = []
    leading: dict[str, Any] = {}
    while page := await read(gateway, kind="model", limit=2, **leading):
        seen += [each["what"] for each in page]
        last = page[-1]["at"]
        before = leading["seen"] if leading.get("until") == last else 0
        leading = {"until": last, "seen": before + sum(each["at"] == last for each in page)}
    assert len(seen) == 12
    assert sorted(seen) == sorted(f"model-created: m{number}" for number in range(12))


async def test_the_audit_is_exported_as_lines_and_as_a_sheet_without_formulas(gateway: Gateway) -> None:
    Registry(gateway.context.store, actor="=cmd()").create_model("m")
    query = {"since": SINCE, "kind": "model", "format": "ndjson"}
    lines = await gateway.client.get("/audit", headers=gateway.headers("admin"), params=query)
    assert [json.loads(line)["who"] for line in lines.text.splitlines()] == ["=cmd()"]
    sheet = await gateway.client.get(
        "/audit", headers=gateway.headers("admin"), params=query | {"format": "csv"}
    )
    assert sheet.headers["content-type"].startswith("text/csv")
    assert [row["who"] for row in csv.DictReader(sheet.text.splitlines())] == ["'=cmd()"]
