"""Authentication, roles, error responses, limits, metrics and the playground of the gateway."""

import re
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.clusters.telemetry.metrics import parse
from toque.ray_apps.gateway.openapi import _renamed


async def test_without_a_token_only_health_answers(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json", headers=gateway.headers("viewer"))).json()
    opened = {"/healthz", "/v2/health/live", "/v2/health/ready"}
    for path, operations in document["paths"].items():
        for method in operations:
            answer = await gateway.client.request(method, path.replace("{", "").replace("}", ""))
            assert (answer.status_code == 200) == (path in opened), (method, path, answer.text)
            assert answer.status_code in {200, 401}
    for route in gateway.app.state.routes:  # also those that the document leaves out
        for method in route.methods:
            answer = await gateway.client.request(method, route.path.replace("{", "").replace("}", ""))
            assert answer.status_code == (200 if route.path in opened else 401), route.path


async def test_a_401_is_a_problem_that_says_how_to_get_a_token(gateway: Gateway) -> None:
    answer = await gateway.client.get("/functions")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["title"] == "Unauthorized"
    assert "toque access token" in answer.json()["detail"]
    assert answer.json()["instance"] == "/functions"


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("caller", "GET", "/models", 403),
        ("viewer", "POST", "/functions/nothing", None),
        ("labeller", "POST", "/functions/nothing", 403),
        ("caller", "POST", "/functions/nothing", 403),
        ("operator", "POST", "/functions/nothing", None),
        ("viewer", "POST", "/feedback", 403),
        ("caller", "POST", "/feedback", 403),
        ("labeller", "POST", "/features/weather/push", 403),
        ("operator", "POST", "/models/late/versions/1/approve", 403),
        ("approver", "POST", "/models/late/versions/1/approve", None),
        ("viewer", "PUT", "/models/late/traffic", 403),
        ("approver", "GET", "/tokens", 403),
        ("admin", "GET", "/tokens", None),
    ],
)
async def test_each_route_requires_its_role(
    gateway: Gateway, role: str, method: str, path: str, status: int | None
) -> None:
    answer = await gateway.client.request(method, path, headers=gateway.headers(role), json={})
    assert (answer.status_code == 403) == (status == 403), answer.text
    if status:
        assert f"a-{role} has {role}:" in answer.json()["detail"]


async def test_a_revoked_token_is_refused(gateway: Gateway) -> None:
    made = await gateway.client.post(
        "/tokens", headers=gateway.headers("admin"), json={"name": "bob", "role": "viewer"}
    )
    assert made.status_code == 201, made.text
    bob = {"Authorization": f"Bearer {made.json()['token']}"}
    assert (await gateway.client.get("/models", headers=bob)).status_code == 200
    assert (await gateway.client.delete("/tokens/bob", headers=gateway.headers("admin"))).status_code == 204
    assert (await gateway.client.get("/models", headers=bob)).status_code == 401
    listed = (await gateway.client.get("/tokens", headers=gateway.headers("admin"))).json()
    assert [each["revoked_at"] is not None for each in listed if each["name"] == "bob"] == [True]
    assert all("digest" not in each for each in listed)


async def test_a_second_live_token_of_a_name_is_a_conflict(gateway: Gateway) -> None:
    wanted = {"name": "bob", "role": "viewer"}
    assert (
        await gateway.client.post("/tokens", headers=gateway.headers("admin"), json=wanted)
    ).status_code == 201
    assert (
        await gateway.client.post("/tokens", headers=gateway.headers("admin"), json=wanted)
    ).status_code == 409


async def test_unknown_paths_and_methods_are_problems(gateway: Gateway) -> None:
    for method, path, status in [("GET", "/nowhere", 404), ("PATCH", "/functions", 405)]:
        answer = await gateway.client.request(method, path, headers=gateway.headers("admin"))
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_405_lists_the_methods_of_the_path(gateway: Gateway) -> None:
    for path, methods in [("/models/any/traffic", "GET, PUT"), ("/invocations/any", "DELETE, GET")]:
        answer = await gateway.client.patch(path, headers=gateway.headers("admin"))
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    assert (await gateway.client.put("/functions/any", headers=gateway.headers("admin"))).status_code == 404


async def test_a_caller_without_a_token_does_not_learn_which_paths_exist(gateway: Gateway) -> None:
    for method, path in [
        ("GET", "/nowhere"),
        ("PATCH", "/functions"),
        ("OPTIONS", "/functions/any"),
        ("TRACE", "/"),
    ]:
        assert (await gateway.client.request(method, path)).status_code == 401, (method, path)


async def test_a_body_above_the_limit_is_refused_before_it_is_read(gateway: Gateway) -> None:
    async def endless() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    answer = await gateway.client.post("/feedback", headers=gateway.headers("labeller"), content=endless())
    assert answer.status_code == 413
    assert "larger than 16777216 bytes" in answer.json()["detail"]
    declared = {"content-length": str(1 << 30)} | gateway.headers("labeller")
    assert (await gateway.client.post("/feedback", headers=declared, content=b"[]")).status_code == 413


async def test_metrics_count_requests_under_their_route(gateway: Gateway) -> None:
    async def counted() -> float:
        answer = await gateway.client.get("/metrics", headers=gateway.headers("viewer"))
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        samples = [each for family in parse(answer.content) for each in family.samples]
        wanted = {"method": "GET", "route": "/models/{model}", "status": "404"}
        assert all("node" in each.labels for each in samples if each.name.startswith("toque_gateway"))
        return sum(
            each.value
            for each in samples
            if each.name == "toque_gateway_requests_total" and wanted.items() <= each.labels.items()
        )

    before = await counted()
    for model in ("one", "two"):
        await gateway.client.get(f"/models/{model}", headers=gateway.headers("viewer"))
    assert await counted() == before + 2


async def test_the_protocol_names_the_server_and_unknown_models(gateway: Gateway) -> None:
    server = await gateway.client.get("/v2", headers=gateway.headers("viewer"))
    assert server.json()["name"] == "toque"
    assert (await gateway.client.get("/v2/health/ready")).json() == {"ready": True}
    for path in ("/v2/models/none", "/v2/models/none/versions/3/ready"):
        answer = await gateway.client.get(path, headers=gateway.headers("viewer"))
        assert answer.status_code == 404
        assert "'none'" in answer.json()["error"]


async def test_the_playground_loads_nothing_external_and_calls_existing_routes(
    gateway: Gateway,
) -> None:
    answer = await gateway.client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=|https?://", answer.text)
    document = (await gateway.client.get("/openapi.json", headers=gateway.headers("viewer"))).json()
    asked = re.findall(r'call\("GET", ["`]([^"`]+)["`]\)', answer.text)
    assert len(asked) == 3
    for path in asked:
        assert path.replace("${name}", "{model}").replace("champion", "{version}") in document["paths"], path


async def test_the_root_leads_a_person_to_the_console_and_tells_a_program_what_there_is(
    gateway: Gateway,
) -> None:
    browser = await gateway.client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (browser.status_code, browser.headers["location"]) == (303, "/ui/")
    for accepted in ("*/*", "application/json"):
        program = await gateway.client.get("/", headers={"Accept": accepted})
        assert (program.status_code, program.json()["console"]) == (200, "/ui/")


async def test_a_head_is_answered_as_the_get_of_its_path(gateway: Gateway) -> None:
    for path, status in (("/healthz", 200), ("/", 200), ("/models", 401), ("/none", 401)):
        answer = await gateway.client.head(path)
        assert (answer.status_code, answer.content) == (status, b""), path
    signed = await gateway.client.head("/models", headers=gateway.headers("viewer"))
    assert (signed.status_code, int(signed.headers["content-length"]) > 0) == (200, True)


@pytest.mark.parametrize(
    ("authorization", "said"),
    [
        (None, "missing"),
        ("Basic YTpi", "Basic, of a user and a password, is not accepted"),
        ("basic", "Basic, of a user and a password, is not accepted"),
        ("Digest x", "got scheme 'Digest'"),
        ("Bearer", "got scheme 'Bearer'"),
    ],
)
async def test_a_header_without_a_token_is_refused_by_what_it_has(
    gateway: Gateway, authorization: str | None, said: str
) -> None:
    answer = await gateway.client.get(
        "/models", headers={"Authorization": authorization} if authorization else {}
    )
    assert answer.status_code == 401
    assert said in answer.text
    assert "YTpi" not in answer.text


@pytest.mark.parametrize(
    "path", ["/models/", "/functions/", "/models//", "/workspaces/default/models/", "/docs/"]
)
@pytest.mark.parametrize("query", ["", "?limit=1&after=//evil.example"])
async def test_a_slash_too_many_leads_to_a_path_whatever_host_is_named(
    gateway: Gateway, path: str, query: str
) -> None:
    for host in ("evil.example", "evil.example:8000", "a@evil.example"):
        headers = {**gateway.headers("viewer"), "Host": host, "X-Forwarded-Host": host}
        answer = await gateway.client.get(path + query, headers=headers)
        assert answer.status_code == 307
        assert answer.headers["location"] == path.rstrip("/") + query
    assert (await gateway.client.get(path + query)).status_code == 401


@pytest.mark.parametrize("path", ["/nowhere/", "//evil.example/", "/", "/models/late/versions/x/y/"])
async def test_a_slash_at_the_end_of_no_route_is_404(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.get(path, headers=gateway.headers("viewer"))
    assert "location" not in answer.headers or answer.headers["location"].startswith("/ui")


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/healthz", "/models/late/policy", "/ui/models"])
async def test_a_405_of_any_route_lists_its_methods(gateway: Gateway, path: str) -> None:
    answer = await gateway.client.request("TRACE", path, headers=gateway.headers("admin"))
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("accepts", "compressed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("identity", False), ("", False), ("br", False)],
)
async def test_a_large_answer_is_compressed_for_those_who_ask(
    gateway: Gateway,
    accepts: str,
    compressed: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    headers = {**gateway.headers("viewer"), "Accept-Encoding": accepts}
    large = await gateway.client.get("/openapi.json", headers=headers)
    assert large.json()["openapi"]
    assert (large.headers.get("content-encoding") == "gzip") is compressed
    assert large.headers["vary"] == "Accept-Encoding"
    small = await gateway.client.get("/healthz", headers=headers)
    assert "content-encoding" not in small.headers
    text = await gateway.client.get("/docs", headers=headers)
    assert (text.headers.get("content-encoding") == "gzip") is compressed
    assert text.text.endswith("</html>\n")


async def test_the_document_says_what_the_audit_exports_and_has_no_default_that_its_type_refuses(
    gateway: Gateway,
) -> None:
    document = (await gateway.client.get("/openapi.json", headers=gateway.headers("viewer"))).json()
    exports = document["paths"]["/audit"]["get"]["responses"]["200"]["content"]
    assert set(exports) == {"application/json", "application/x-ndjson", "text/csv"}
    schemas = _renamed({"loss": {"type": "number", "default": None}, "n": {"type": "null", "default": None},
                        "default": {"type": "object", "default": {}}}, "x")  # fmt: skip
    assert schemas == {
        "loss": {"type": "number"},
        "n": {"type": "null", "default": None},
        "default": {"type": "object", "default": {}},
    }
