"""Signing in at an issuer: a real HTTP server that hands out a code and exchanges it for a signed token."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlsplit

import httpx
import pytest

from tests.ray_apps.console.conftest import Platform, Visitor, make_platform
from tests.ray_apps.oidc.conftest import Issuer, issuer
from toque.ray_apps.oidc import OidcSettings
from toque.ray_apps.oidc.code_flow import CodeFlow, post_form
from toque.registry import InvalidInput

__all__ = ["issuer"]
CLIENT = {"id": "toque-console"}


def settings(issuer: Issuer, **changes: Any) -> OidcSettings:
    issuer.changed["/.well-known/openid-configuration"] = {
        "issuer": issuer.url,
        "jwks_uri": f"{issuer.url}/keys",
        "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token",
        "end_session_endpoint": f"{issuer.url}/end",
    }
    return issuer.settings(audience=["toque-console"], client=CLIENT, **changes)


class TokenEndpoint:
    """What the issuer's token endpoint does: checks the verifier of the code, and signs a token with the nonce."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer, self.codes, self.changes = issuer, dict[str, dict[str, str]](), dict[str, Any]()

    def authorize(self, address: str) -> str:
        asked = dict(parse_qsl(urlsplit(address).query))
        self.codes["a-code"] = asked
        return f"/ui/oidc/callback?code=a-code&state={asked['state']}"

    def __call__(self, _url: str, form: Any, _own: Any) -> dict[str, str]:
        asked = self.codes.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            asked is None
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != form["redirect_uri"]
        ):
            raise ValueError("invalid_grant")
        claims = {"aud": "toque-console", "nonce": asked["nonce"], "groups": ["readers"]} | self.changes
        return {"id_token": self.issuer.token(**claims)}


@pytest.fixture
def platform(filled: Path, tmp_path: Path, issuer: Issuer) -> Platform:
    shutil.copytree(filled, tmp_path / "store")
    made = make_platform(tmp_path / "store", oidc=settings(issuer))
    flow = made.app.state.console.oidc
    flow._post = TokenEndpoint(issuer)
    return made


async def begun(platform: Platform, to: str = "/ui/models") -> tuple[Visitor, str]:
    """A browser that has been at the issuer, and the address to which that sent it back."""
    visitor = platform.visitor()
    assert "/ui/oidc/start" in (await visitor.get("/ui/")).text
    answer = await visitor.get(f"/ui/oidc/start?next={to}")
    assert answer.status_code == 303
    return visitor, platform.app.state.console.oidc._post.authorize(answer.headers["location"])


async def test_a_person_signs_in_at_the_issuer_and_sees_what_her_groups_allow(platform: Platform) -> None:
    visitor, back = await begun(platform)
    answer = await visitor.get(back)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/models")
    page = await visitor.get("/ui/models")
    assert page.status_code == 200
    assert "oidc:ada" in page.text
    assert (await visitor.get("/ui/audit")).status_code == 403


async def test_an_answer_to_another_sign_in_is_refused(platform: Platform) -> None:
    victim, attacker = await begun(platform), await begun(platform)
    endpoint = platform.app.state.console.oidc._post
    assert (
        await victim[0].get(attacker[1])
    ).status_code == 403  # the attacker's state in the victim's browser
    assert (await platform.visitor().get(attacker[1])).status_code == 403  # a browser that began nothing
    endpoint.changes = {"nonce": "of another"}
    answer = await attacker[0].get(attacker[1])
    assert (answer.status_code, "nonce" in answer.text) == (403, True)
    assert (await attacker[0].get("/ui/")).status_code == 401


async def test_a_token_that_the_doors_refuse_signs_nobody_in(platform: Platform) -> None:
    visitor, back = await begun(platform)
    platform.app.state.console.oidc._post.changes = {"aud": "another-client"}
    assert (await visitor.get(back)).status_code == 403
    assert (await visitor.get("/ui/")).status_code == 401


async def test_a_refusal_of_the_issuer_is_told_and_leads_to_no_other_site(platform: Platform) -> None:
    visitor, _ = await begun(platform, "https://evil.example/")
    answer = await visitor.get("/ui/oidc/callback?error=%3Cb%3Eaccess_denied&state=x")
    assert (answer.status_code, "&lt;b&gt;access_denied" in answer.text) == (403, True)
    visitor, back = await begun(platform, "https://evil.example/")
    assert (await visitor.get(back)).headers["location"] == "/ui/"


async def test_signing_out_leads_on_to_the_issuer_without_the_token(platform: Platform) -> None:
    visitor, back = await begun(platform)
    await visitor.get(back)
    answer = await visitor.send("/ui/models", "/ui/sign-out")
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/oidc/end")
    page = await visitor.get("/ui/oidc/end")
    _, _, address = page.headers["refresh"].partition("url=")
    assert urlsplit(address).path == "/end"
    assert parse_qsl(urlsplit(address).query) == [("client_id", "toque-console")]
    assert (await visitor.get("/ui/models")).status_code == 401


async def test_an_issuer_without_an_end_of_sessions_is_said_to_have_none(
    platform: Platform, issuer: Issuer
) -> None:
    del issuer.changed["/.well-known/openid-configuration"]["end_session_endpoint"]
    page = await platform.visitor().get("/ui/oidc/end")
    assert (page.status_code, "refresh" in page.headers) == (200, False)
    assert "still signed in" in page.text


async def test_who_signed_in_by_a_token_of_the_list_stays_here(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    assert (await visitor.send("/ui/", "/ui/sign-out")).headers["location"].startswith("/ui/sign-in")


@pytest.mark.parametrize(
    ("supported", "prompt"), [(None, "login"), (["none", "login", "select_account"], "select_account")]
)
async def test_somebody_else_is_asked_for_by_the_issuer(
    platform: Platform, issuer: Issuer, supported: list[str] | None, prompt: str
) -> None:
    issuer.changed["/.well-known/openid-configuration"]["prompt_values_supported"] = supported
    visitor, back = await begun(platform)
    platform.app.state.console.oidc._post.changes = {"groups": []}
    assert (await visitor.get(back)).status_code in {303, 403}
    assert "/ui/oidc/start?another=true" in (await visitor.get("/ui/sign-in")).text
    answer = await visitor.get("/ui/oidc/start?another=true")
    assert dict(parse_qsl(urlsplit(answer.headers["location"]).query))["prompt"] == prompt
    usual = await visitor.get("/ui/oidc/start")
    assert "prompt" not in dict(parse_qsl(urlsplit(usual.headers["location"]).query))


@pytest.mark.parametrize(
    ("name", "secret"),
    [("odd", "a+b%2Fc d"), ("a:b", "x:y"), ("ü", "päss&word=1"), ("plain", "abc-DEF_123.~")],
)
def test_a_secret_is_form_encoded(name: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return httpx.Response(200, json={"id_token": "x"})

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(httpx, "post", client.post)
    post_form("https://issuer/token", {"code": "c"}, (name, secret))
    pair = base64.b64decode(sent[0].removeprefix("Basic ")).decode("ascii")
    assert [unquote_plus(part) for part in pair.split(":")] == [name, secret]


def test_the_client_must_be_an_audience_of_its_tokens(issuer: Issuer) -> None:
    with pytest.raises(InvalidInput, match=r"client\.id='toque-console' is not in audience"):
        issuer.settings(client=CLIENT)


def test_the_flow_asks_the_issuers_own_endpoints_by_http(issuer: Issuer) -> None:
    found = settings(issuer)
    assert found.client is not None
    flow = CodeFlow(found, found.client)
    address, pending = flow.begin("http://here/ui/oidc/callback", "/ui/")
    assert address.startswith(f"{issuer.url}/authorize?response_type=code&client_id=toque-console")
    with pytest.raises(InvalidInput, match="the issuer gave no token"):
        flow.finish(pending, state=pending.state, code="x", redirect_uri="http://here/ui/oidc/callback")
