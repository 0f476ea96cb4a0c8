"""Who gets into the console, how a session begins and ends, and what an attacker cannot do with one."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_platform import MODEL, NOW
from toque.ray_apps.console.route import safe_next
from toque.ray_apps.console.sessions import CODE_LIFETIME, SESSION_LIFETIME, Sessions
from toque.registry import open_store


@dataclass
class MovingClock:
    at: datetime = NOW

    def __call__(self) -> datetime:
        return self.at


VERSION = f"/ui/models/{MODEL}/versions/5"


async def test_a_stranger_gets_the_sign_in_form_at_every_page_and_nothing_of_the_platform(
    platform: Platform,
) -> None:
    for path in ("/ui/", f"/ui/models/{MODEL}", "/ui/nothing-here"):
        answer = await platform.visitor().get(path)
        assert answer.status_code == 401
        assert 'name="token"' in answer.text
        assert "Will a flight" not in answer.text


async def test_a_token_signs_in_and_leads_to_the_page_that_was_asked_for(platform: Platform) -> None:
    visitor = platform.visitor()
    answer = await visitor.sign_in(platform.tokens["viewer"], f"/ui/models/{MODEL}?before=3")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/models/{MODEL}?before=3")
    cookie = answer.headers["set-cookie"]
    assert all(each in cookie for each in ("HttpOnly", "SameSite=lax", "Path=/"))
    assert "Secure" not in cookie
    assert platform.tokens["viewer"] not in cookie
    assert (await visitor.get(f"/ui/models/{MODEL}")).status_code == 200


async def test_behind_tls_the_cookie_is_secure_and_of_this_host_alone(platform: Platform) -> None:
    visitor = platform.visitor(**{"X-Forwarded-Proto": "https"})
    answer = await visitor.sign_in(platform.tokens["viewer"])
    assert answer.headers["set-cookie"].startswith("__Host-toque-session=")
    assert "Secure" in answer.headers["set-cookie"]
    assert "Strict-Transport-Security" in answer.headers


@pytest.mark.parametrize(
    ("address", "host", "secure"),
    [
        ("https://toque.example.com", "toque.example.com", True),
        ("https://toque.example.com/", "localhost:8000", False),
        ("http://toque.example.com", "toque.example.com", False),
        (None, "toque.example.com", False),
    ],
)
async def test_behind_a_balancer_that_sends_no_scheme_the_address_of_the_platform_tells_it(
    platform: Platform, address: str | None, host: str, *, secure: bool
) -> None:
    platform.app.state.console_url = address
    answer = await platform.visitor(Host=host).sign_in(platform.tokens["viewer"])
    assert answer.headers["set-cookie"].startswith("__Host-toque-session=") == secure
    assert ("Strict-Transport-Security" in answer.headers) == secure


@pytest.mark.parametrize("token", ["", "tq_unknown_x", "é" * 10, "a b\nc"])
async def test_a_wrong_token_is_refused_with_a_reason(platform: Platform, token: str) -> None:
    answer = await platform.visitor().sign_in(token)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert 'role="alert"' in answer.text


async def test_a_revoked_token_ends_its_sessions(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    platform.access.revoke("a-viewer")
    platform.app.state.admission.tokens.forget()
    answer = await visitor.get("/ui/")
    assert answer.status_code == 401
    assert "Your session has ended" in answer.text


async def test_signing_in_changes_the_session_so_that_a_planted_one_is_worth_nothing(
    platform: Platform,
) -> None:
    attacker, victim = await platform.signed_in("viewer"), platform.visitor()
    planted = attacker.http.cookies["toque-session"]
    victim.http.cookies.set("toque-session", planted, domain="gateway.local", path="/")
    await victim.sign_in(platform.tokens["admin"])
    assert victim.http.cookies["toque-session"] != planted
    assert (
        await attacker.get("/ui/")
    ).status_code == 401  # the session that the browser had before has ended


async def test_an_identifier_that_nobody_was_given_is_no_session(platform: Platform) -> None:
    visitor = platform.visitor()
    for planted in ("chosen", "../../access", "a" * 1000):
        visitor.http.cookies.set("toque-session", planted)
        assert (await visitor.get("/ui/")).status_code == 401


async def test_signing_out_ends_the_session_for_who_kept_its_cookie(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    kept = visitor.http.cookies["toque-session"]
    assert (await visitor.send("/ui/", "/ui/sign-out")).status_code == 303
    thief = platform.visitor()
    thief.http.cookies.set("toque-session", kept)
    assert (await thief.get("/ui/")).status_code == 401


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example/ui/",
        "/\\evil.example",
        "/ui//evil.example",
        "/ui/\\evil.example",
        "/ui/\n//evil.example",
        "/models",
        "javascript:alert(1)",
        "/workspaces/../ui/",
        "/workspaces/a/b/ui/",
        "",
    ],
)
async def test_signing_in_leads_to_no_other_site(platform: Platform, to: str) -> None:
    assert safe_next(to) == "/ui/"
    answer = await platform.visitor().sign_in(platform.tokens["viewer"], to)
    assert answer.headers["location"] == "/ui/"
    shown = await platform.visitor().get(f"/ui/sign-in?next={quote(to)}")
    assert "evil" not in shown.text


async def test_a_form_of_another_site_or_without_the_sessions_proof_changes_nothing(
    platform: Platform,
) -> None:
    victim = await platform.signed_in("admin")
    forged = await victim.http.post(f"{VERSION}/approve", data={"comment": "forged"})
    other = await platform.signed_in("admin")
    page = await other.get(VERSION)
    proof = page.text.split('name="csrf" value="')[1].split('"')[0]
    of_other = await victim.http.post(f"{VERSION}/approve", data={"csrf": proof})
    cross = await other.http.post(
        f"{VERSION}/approve", data={"csrf": proof}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    origin = await other.http.post(
        f"{VERSION}/approve", data={"csrf": proof}, headers={"Origin": "https://evil.example"}
    )
    assert [each.status_code for each in (forged, of_other, cross, origin)] == [403] * 4
    assert "0 of 1 approvals" in (await victim.get(VERSION)).text


async def test_another_site_signs_nobody_in(platform: Platform) -> None:
    answer = await platform.visitor(Origin="https://evil.example").sign_in(platform.tokens["viewer"])
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


async def test_a_code_of_the_command_line_signs_in_once(platform: Platform) -> None:
    headers = {"Authorization": f"Bearer {platform.tokens['operator']}"}
    made = (await platform.visitor().http.post("/sign-in-codes", headers=headers)).json()
    first, second = platform.visitor(), platform.visitor()
    shown = await first.get(made["path"])  # looking at the page does not use the code up
    assert made["code"] in shown.text
    assert (await first.http.post("/ui/enter", data={"code": made["code"]})).status_code == 303
    assert "a-operator" in (await first.get("/ui/")).text
    again = await second.http.post("/ui/enter", data={"code": made["code"]})
    assert again.status_code == 403
    assert "used before" in again.text


def test_codes_and_sessions_end_by_themselves_and_leave_nothing(tmp_path) -> None:
    clock = MovingClock()
    store = open_store(f"file://{tmp_path}")
    sessions = Sessions(store, clock=clock)
    session, (code, _) = sessions.start("tq_a_b"), sessions.make_code("tq_a_b")
    assert b"tq_a_b" not in b"".join(store.get(key) for key in store.list("console/"))
    clock.at += max(CODE_LIFETIME, SESSION_LIFETIME) + timedelta(seconds=1)
    assert sessions.find(session.id) is None
    assert sessions.redeem(code) is None


def test_a_session_holds_in_every_gateway_until_it_is_ended_in_one(tmp_path) -> None:
    clock = MovingClock()
    store = open_store(f"file://{tmp_path}")
    here, there = Sessions(store, clock=clock), Sessions(store, clock=clock)
    session = here.start("tq_a_b")
    found = there.find(session.id)
    assert found is not None
    assert (found.token, found.csrf) == ("tq_a_b", session.csrf)
    here.end(session.id)
    clock.at += timedelta(seconds=6)
    assert there.find(session.id) is None


async def test_a_viewer_of_another_workspace_sees_only_that_one(platform: Platform) -> None:
    paula = await platform.signed_in("payments")
    assert (await paula.get("/ui/models")).status_code == 200
    assert MODEL not in (await paula.get("/ui/models")).text
    assert (await paula.get(f"/workspaces/default/ui/models/{MODEL}")).status_code == 403
    assert (await paula.get("/workspaces/payments/ui/models")).status_code == 200
