"""Tokens of an issuer: which are accepted, as whom, with which grants, and which never."""

import base64
import hashlib
import hmac
import io
import time

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.ray_apps.oidc.conftest import Issuer, unsigned
from toque.ray_apps.oidc import OidcVerifier, with_oidc
from toque.ray_apps.oidc.__main__ import main
from toque.ray_apps.oidc.verifier import RENEW_S, IssuerKeys
from toque.ray_apps.token_cache import TokenCache
from toque.registry import Access, Principal, Unavailable, open_store


def found(issuer: Issuer, token: str, **settings: object) -> Principal | None:
    return OidcVerifier(issuer.settings(**settings)).verify(token)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_signed_token_stands_for_its_name_with_the_grants_of_its_claims(issuer: Issuer, algorithm):
    issuer.add_key("other", algorithm)
    token = issuer.token(
        "other", groups=["ml-payments", "readers", "cooks"], realm_access={"roles": ["scorer"]}
    )
    principal = found(issuer, token)
    assert principal is not None
    assert principal.name == "oidc:ada"
    assert [str(each) for each in principal.grants] == [
        "operator:payments",
        "viewer:*",
        "caller:payments:fraud",
    ]


def test_a_token_that_no_grant_fits_is_somebody_who_may_do_nothing(issuer: Issuer):
    principal = found(issuer, issuer.token(groups="ml"))
    assert principal is not None
    assert not principal.may("viewer")
    assert not principal.may("caller", "payments")


def test_one_group_as_text_counts_as_that_group_and_a_longer_name_does_not(issuer: Issuer):
    assert [str(each) for each in found(issuer, issuer.token(groups="readers")).grants] == ["viewer:*"]
    assert found(issuer, issuer.token(groups="ml-payments-guests")).grants == ()


def since_now(claims: dict[str, object]) -> dict[str, object]:
    """Claims whose times are seconds from now: a long test run begins long before the test."""
    now_s = int(time.time())
    return {
        name: now_s + value if name in {"exp", "nbf", "iat"} and isinstance(value, int) else value
        for name, value in claims.items()
    }


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": -60},
        {"exp": None},
        {"exp": 10 * 86_400},
        {"exp": 10**400},
        {"nbf": 300},
        {"iat": 300},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "a b"},
        {"sub": "ada\n"},
        {"sub": "x" * 129},
        {"sub": 7},
    ],
    ids=lambda claims: "-".join(map(str, claims.items()))[:40],
)
def test_a_token_with_a_wrong_claim_is_refused(issuer: Issuer, claims):
    verifier = OidcVerifier(issuer.settings())
    assert verifier.verify(issuer.token()) is not None
    token = issuer.token(**since_now(claims))
    assert verifier.verify(token) is None
    assert verifier.recall(token) is None


def test_an_accepted_token_is_not_parsed_again_until_it_expires_or_its_key_changes(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    now_s, seconds = [time.time()], [0.0]
    settings = issuer.settings()
    keys = IssuerKeys(settings, clock=lambda: seconds[0])
    verifier = OidcVerifier(settings, keys=keys, clock=lambda: now_s[0])
    token = issuer.token()
    found = verifier.verify(token)
    with monkeypatch.context() as patch:
        patch.setattr("jwt.decode_complete", None)
        assert verifier.verify(token) is found is not None
        assert verifier.recall(token) is found
    issuer.add_key("one")  # another one by the same id
    seconds[0] += RENEW_S
    assert verifier.verify(token) is None


def test_an_accepted_token_is_checked_again_once_it_has_expired(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
):
    now_s = [time.time()]
    verifier = OidcVerifier(issuer.settings(leeway_s=5), clock=lambda: now_s[0])
    token = issuer.token(exp=int(now_s[0]) + 600)

    def expired(*_: object, **__: object) -> None:
        raise jwt.ExpiredSignatureError

    assert verifier.verify(token) is not None
    monkeypatch.setattr("jwt.decode_complete", expired)
    now_s[0] += 603
    assert verifier.verify(token) is not None
    now_s[0] += 3
    assert verifier.verify(token) is None


def test_clocks_may_differ_by_the_leeway(issuer: Issuer):
    assert found(issuer, issuer.token(exp=int(time.time()) - 10)) is not None
    assert found(issuer, issuer.token(exp=int(time.time()) - 10), leeway_s=0) is None


def test_one_of_several_audiences_is_enough(issuer: Issuer):
    token = issuer.token(aud=["web", "toque"])
    assert found(issuer, token, audience=["api", "web"]) is not None
    assert found(issuer, token, audience=["api"]) is None


def test_an_unsigned_token_is_refused(issuer: Issuer):
    claims = {"iss": issuer.url, "aud": "toque", "sub": "ada", "exp": time.time() + 600}
    verifier = OidcVerifier(issuer.settings())
    for alg in ("none", "None", "NONE", "", None, ["ES256"]):
        for signature in (b"", b"x"):
            assert verifier.verify(unsigned({"alg": alg, "kid": "one"}, claims, signature)) is None


def test_the_public_key_does_not_sign_as_a_shared_secret(issuer: Issuer):
    issuer.add_key("rsa", "RS256")
    public = issuer.keys["rsa"][1].public_key()
    claims = {"iss": issuer.url, "aud": "toque", "sub": "ada", "exp": time.time() + 600}
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    verifier = OidcVerifier(issuer.settings())
    for alg in ("HS256", "RS256"):
        text = unsigned({"alg": alg, "kid": "rsa"}, claims).rpartition(".")[0]
        mac = hmac.digest(pem, text.encode(), hashlib.sha256)
        assert verifier.verify(unsigned({"alg": alg, "kid": "rsa"}, claims, mac)) is None


def test_a_changed_token_and_one_of_another_key_are_refused(issuer: Issuer):
    verifier = OidcVerifier(issuer.settings())
    head, body, signature = issuer.token().split(".")
    _, admin, _ = issuer.token(sub="root").split(".")
    assert verifier.verify(f"{head}.{admin}.{signature}") is None
    assert verifier.verify(f"{head}.{body}.") is None
    stranger = Issuer(issuer.url)
    stranger.add_key("one")
    assert verifier.verify(stranger.token()) is None
    stranger.add_key("one", "RS256")  # with the id of a key for another algorithm
    assert verifier.verify(stranger.token()) is None


def test_a_key_for_an_algorithm_that_is_not_allowed_is_refused(issuer: Issuer):
    issuer.add_key("rsa", "RS256")
    assert found(issuer, issuer.token(), algorithms=["RS256"]) is None
    assert found(issuer, issuer.token("rsa"), algorithms=["RS256"]) is not None


@pytest.mark.parametrize("header", [{"kid": None}, {"kid": 7}, {"crit": ["b64"], "b64": True}])
def test_a_token_with_an_unusual_header_is_refused(issuer: Issuer, header):
    claims = {"iss": issuer.url, "aud": "toque", "sub": "ada", "exp": time.time() + 600}
    given = {"alg": "ES256", "kid": "one", **header}
    assert found(issuer, unsigned(given, claims, b"x" * 64)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "....",
        "ä.b.c",
        "tq_0_0",
        "x." * 9_000 + "x",
        "e30.W10.eA",
        "W1tb.e30.eA",
    ],
)
def test_a_text_that_is_no_token_is_refused_without_asking_the_issuer(issuer: Issuer, text):
    assert found(issuer, text) is None
    assert issuer.reads == 0


def test_deeply_nested_json_is_refused(issuer: Issuer):
    deep = base64.urlsafe_b64encode(b"[" * 6_000).decode()
    head, body, signature = issuer.token().split(".")
    assert found(issuer, f"{deep}.{body}.{signature}") is None
    assert found(issuer, f"{head}.{deep}.{signature}") is None
    assert issuer.reads == 0


def test_an_address_that_the_issuer_did_not_verify_names_nobody(issuer: Issuer):
    mine = {"email": "ada@x.example"}
    verified = found(issuer, issuer.token(**mine, email_verified=True), name_claim="email")
    assert verified.name == "oidc:ada@x.example"
    for said in ({}, {"email_verified": False}, {"email_verified": "true"}, {"email_verified": 1}):
        assert found(issuer, issuer.token(**mine, **said), name_claim="email") is None


async def test_tokens_of_both_kinds_are_known_to_one_cache_and_an_issuer_away_stops_its_own_only(
    tmp_path, issuer: Issuer
):
    access = Access(open_store(f"file://{tmp_path}"), actor="root")
    text = access.create_token("bot", "viewer")
    issuer.away = True
    cache = TokenCache(with_oidc(access, issuer.settings()), patience_s=60)
    assert (await cache.principal(text)).name == "bot"
    with pytest.raises(Unavailable, match="503"):
        await cache.principal(issuer.token())
    assert await cache.principal("neither.of.both!") is None


async def test_a_cached_token_is_refused_once_it_has_expired_also_while_the_issuer_is_away(issuer: Issuer):
    now = [0.0]
    settings = issuer.settings(leeway_s=0)
    access = with_oidc(_NoTokens(), settings)
    cache = TokenCache(access, recheck_s=1.0, patience_s=60, clock=lambda: now[0])
    token = issuer.token(exp=int(time.time()) + 2)
    assert await cache.principal(token) is not None
    issuer.away = True
    deadline = time.monotonic() + 60
    while await cache.principal(token) is not None:
        now[0] += 3
        assert time.monotonic() < deadline
        await cache.settled()


class _NoTokens:
    def recognises(self, _: str) -> bool:
        return False

    def verify(self, token: str) -> Principal | None:
        raise AssertionError(token)

    def recall(self, token: str) -> Principal | None:
        raise AssertionError(token)


def test_the_program_tells_whom_a_token_stands_for_or_why_it_is_refused(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def told(token: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
        code = main([])
        return code, "".join(capsys.readouterr())

    monkeypatch.delenv("TOQUE_OIDC", raising=False)
    assert told("")[0] == 2
    monkeypatch.setenv("TOQUE_OIDC", "{}")
    assert "issuer" in told("")[1]
    monkeypatch.setenv("TOQUE_OIDC", issuer.settings().model_dump_json())
    assert told(issuer.token()) == (0, "oidc:ada has operator:payments\n")
    for token, why in (
        (issuer.token(exp=1), "expired"),
        (issuer.token(aud="x"), "udience"),
        ("", "segments"),
    ):
        code, text = told(token)
        assert code == 1
        assert why in text
    issuer.away = True
    assert told(issuer.token())[0] == 1
