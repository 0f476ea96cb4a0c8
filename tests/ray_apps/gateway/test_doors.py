"""Who may enter, and how refusals look."""

import re
from typing import Any

import pytest


async def test_without_a_token_nothing_but_health_answers(platform: Any) -> None:
    document = (await platform.client.get("/openapi.json", headers=platform.of("viewer"))).json()
    opened = {"/healthz", "/v2/health/live", "/v2/health/ready"}
    for path, operations in document["paths"].items():
        for method in operations:
            answer = await platform.client.request(method, path.replace("{", "").replace("}", ""))
            assert (answer.status_code == 200) == (path in opened), (method, path, answer.text)
            assert answer.status_code in {200, 401}
    for route in platform.app.state.rooms:  # those that the document leaves out, too
        for method in route.methods:
            answer = await platform.client.request(method, route.path.replace("{", "").replace("}", ""))
            assert answer.status_code == (200 if route.path in opened and method != "HEAD" else 401), (
                route.path
            )


async def test_a_refusal_is_a_problem_that_says_what_to_do(platform: Any) -> None:
    answer = await platform.client.get("/functions")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["title"] == "Unauthorized"
    assert "toque token" in answer.json()["detail"]
    assert answer.json()["instance"] == "/functions"


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("predictor", "GET", "/models", None),
        ("viewer", "POST", "/functions/nothing", 403),
        ("predictor", "POST", "/functions/nothing", 403),
        ("operator", "POST", "/functions/nothing", None),
        ("viewer", "POST", "/feedback", 403),
        ("predictor", "POST", "/feedback", None),
        ("predictor", "POST", "/features/weather/push", 403),
        ("operator", "POST", "/models/late/versions/1/approve", 403),
        ("approver", "POST", "/models/late/versions/1/approve", None),
        ("viewer", "PUT", "/models/late/traffic", 403),
        ("approver", "GET", "/tokens", 403),
        ("admin", "GET", "/tokens", None),
    ],
)
async def test_each_door_asks_for_its_role(
    platform: Any, role: str, method: str, path: str, status: int | None
) -> None:
    answer = await platform.client.request(method, path, headers=platform.of(role), json={})
    assert (answer.status_code == 403) == (status == 403), answer.text
    if status:
        assert f"a-{role} has the role {role}" in answer.json()["detail"]


async def test_a_revoked_token_is_refused(platform: Any) -> None:
    made = await platform.client.post(
        "/tokens", headers=platform.of("admin"), json={"name": "bob", "role": "viewer"}
    )
    assert made.status_code == 201, made.text
    bob = {"Authorization": f"Bearer {made.json()['token']}"}
    assert (await platform.client.get("/models", headers=bob)).status_code == 200
    assert (await platform.client.delete("/tokens/bob", headers=platform.of("admin"))).status_code == 204
    assert (await platform.client.get("/models", headers=bob)).status_code == 401
    listed = (await platform.client.get("/tokens", headers=platform.of("admin"))).json()
    assert [each["revoked_at"] is not None for each in listed if each["name"] == "bob"] == [True]
    assert all("digest" not in each for each in listed)


async def test_a_second_live_token_of_a_name_is_a_conflict(platform: Any) -> None:
    wanted = {"name": "bob", "role": "viewer"}
    assert (
        await platform.client.post("/tokens", headers=platform.of("admin"), json=wanted)
    ).status_code == 201
    assert (
        await platform.client.post("/tokens", headers=platform.of("admin"), json=wanted)
    ).status_code == 409


async def test_unknown_paths_and_methods_are_problems(platform: Any) -> None:
    for method, path, status in [("GET", "/nowhere", 404), ("PATCH", "/functions", 405)]:
        answer = await platform.client.request(method, path, headers=platform.of("admin"))
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_method_that_is_not_there_tells_which_are(platform: Any) -> None:
    for path, methods in [("/models/any/traffic", "GET, PUT"), ("/invocations/any", "DELETE, GET")]:
        answer = await platform.client.patch(path, headers=platform.of("admin"))
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    assert (await platform.client.put("/functions/any", headers=platform.of("admin"))).status_code == 404


async def test_a_stranger_is_not_told_what_there_is(platform: Any) -> None:
    for method, path in [
        ("GET", "/nowhere"),
        ("PATCH", "/functions"),
        ("OPTIONS", "/functions/any"),
        ("TRACE", "/"),
    ]:
        assert (await platform.client.request(method, path)).status_code == 401, (method, path)


async def test_a_body_above_the_limit_is_refused_before_it_is_read(platform: Any) -> None:
    async def endless() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    answer = await platform.client.post("/feedback", headers=platform.of("predictor"), content=endless())
    assert answer.status_code == 413
    assert "larger than 16777216 bytes" in answer.json()["detail"]
    declared = {"content-length": str(1 << 30)} | platform.of("predictor")
    assert (await platform.client.post("/feedback", headers=declared, content=b"[]")).status_code == 413


async def test_metrics_count_requests_under_their_route(platform: Any) -> None:
    for model in ("one", "two"):
        await platform.client.get(f"/models/{model}", headers=platform.of("viewer"))
    answer = await platform.client.get("/metrics", headers=platform.of("viewer"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (
        'toque_gateway_requests_total{method="GET",route="/models/{model}",status="404"} 2.0' in answer.text
    )


async def test_the_protocol_names_the_server_and_unknown_models(platform: Any) -> None:
    server = await platform.client.get("/v2", headers=platform.of("viewer"))
    assert server.json()["name"] == "toque"
    assert (await platform.client.get("/v2/health/ready")).json() == {"ready": True}
    for path in ("/v2/models/none", "/v2/models/none/versions/3/ready"):
        answer = await platform.client.get(path, headers=platform.of("viewer"))
        assert answer.status_code == 404
        assert "'none'" in answer.json()["error"]


async def test_the_playground_needs_nothing_from_elsewhere_and_asks_routes_that_exist(platform: Any) -> None:
    answer = await platform.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=|https?://", answer.text)
    document = (await platform.client.get("/openapi.json", headers=platform.of("viewer"))).json()
    asked = re.findall(r'call\("GET", ["`]([^"`]+)["`]\)', answer.text)
    assert len(asked) == 3
    for path in asked:
        assert path.replace("${name}", "{model}").replace("champion", "{version}") in document["paths"], path
