"""Signing in at an issuer: a real HTTP server that hands out a code and exchanges it for a signed token."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from ray_apps.oidc import OidcSettings
from ray_apps.oidc.code_flow import CodeFlow
from registry import InvalidInput
from tests.ray_apps.console.conftest import Platform, Visitor, make_platform
from tests.ray_apps.oidc.conftest import Issuer, issuer

__all__ = ["issuer"]
CLIENT = {"id": "toque-console"}


def settings(issuer: Issuer, **changes: Any) -> OidcSettings:
    issuer.changed["/.well-known/openid-configuration"] = {
        "issuer": issuer.url,
        "jwks_uri": f"{issuer.url}/keys",
        "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token",
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
