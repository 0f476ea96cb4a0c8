"""The keys of an issuer: when they are read, how long they are kept, and what is read as a key at all."""

import json
import threading

import pytest

from tests.ray_apps.oidc.conftest import GRANTS, Issuer
from toque.ray_apps.oidc.settings import OidcSettings
from toque.ray_apps.oidc.verifier import KEEP_S, RENEW_S, RETRY_S, IssuerKeys, fetch_json
from toque.registry import InvalidInput, Unavailable


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> IssuerKeys:
    return IssuerKeys(issuer.settings(), clock=clock)


def test_keys_are_read_once_and_again_when_they_are_old(issuer: Issuer, keys: IssuerKeys, clock: Clock):
    for _ in range(3):
        assert keys.find("one") is not None
    assert issuer.reads == 1
    clock.now_s += RENEW_S
    assert keys.find("one") is not None
    assert issuer.reads == 2


def test_a_new_key_is_found_and_unknown_ones_are_asked_for_once_in_a_while(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
):
    assert keys.find("one") is not None
    issuer.add_key("two")
    for n in range(50):
        assert keys.find(f"unknown-{n}") is None
    assert issuer.reads == 1
    clock.now_s += RETRY_S
    assert keys.find("two") is not None
    for n in range(50):
        assert keys.find(f"unknown-{n}") is None
    assert issuer.reads == 2


def test_a_key_that_the_issuer_took_back_is_forgotten(issuer: Issuer, keys: IssuerKeys, clock: Clock):
    assert keys.find("one") is not None
    issuer.add_key("two")
    del issuer.keys["one"]
    clock.now_s += RENEW_S
    assert keys.find("one") is None
    assert keys.find("two") is not None


def test_keys_are_kept_while_the_issuer_is_away_but_not_for_ever(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
):
    assert keys.find("one") is not None
    issuer.away = True
    clock.now_s += KEEP_S
    assert keys.find("one") is not None
    assert keys.recall("one") is not None
    clock.now_s += RETRY_S
    with pytest.raises(Unavailable, match="answers 503"):
        keys.find("one")
    assert keys.recall("one") is None
    issuer.away = False
    clock.now_s += RETRY_S
    assert keys.find("one") is not None


def test_without_keys_an_issuer_away_is_asked_again_soon(issuer: Issuer, keys: IssuerKeys, clock: Clock):
    issuer.away = True
    with pytest.raises(Unavailable, match="cannot be read"):
        keys.find("one")
    issuer.away = False
    clock.now_s += 2
    assert keys.find("one") is not None


def test_a_known_key_does_not_wait_for_a_slow_issuer(issuer: Issuer, clock: Clock):
    slow, started, go_on = [False], threading.Event(), threading.Event()

    def fetch(url: str) -> object:
        if slow[0]:
            started.set()
            assert go_on.wait(60)
        return fetch_json(url)

    keys = IssuerKeys(issuer.settings(), fetch=fetch, clock=clock)
    assert keys.find("one") is not None
    slow[0], clock.now_s = True, clock.now_s + RENEW_S
    reader = threading.Thread(target=keys.find, args=("unknown",))
    reader.start()
    assert started.wait(60)
    assert keys.find("one") is not None  # would hang
    go_on.set()
    reader.join(60)


@pytest.mark.parametrize(
    ("path", "document", "problem"),
    [
        ("/.well-known/openid-configuration", {"issuer": "https://other.example"}, "is of issuer"),
        ("/.well-known/openid-configuration", {"issuer": "URL", "jwks_uri": "http://x.example"}, "https"),
        ("/.well-known/openid-configuration", {"issuer": "URL", "jwks_uri": "file:///etc/x"}, "https"),
        ("/.well-known/openid-configuration", {"issuer": "URL"}, "https"),
        ("/keys", b" " * 300_000, "larger than"),
        ("/keys", b"[]", "no JSON object"),
        ("/keys", b"{", "Expecting"),
        ("/keys", b"[" * 100_000, "Recursion"),
        ("/keys", {"keys": []}, "has no key"),
        ("/keys", {"keys": "none"}, "has no key"),
        ("/keys", {"keys": [None, {"kty": "oct", "kid": "one", "k": "AAAA"}]}, "has no key"),
        (
            "/keys",
            {"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "x": "AA", "y": "AA"}]},
            "has no key",
        ),
    ],
)
def test_wrong_documents_of_the_issuer_give_no_key(issuer: Issuer, keys: IssuerKeys, path, document, problem):
    if isinstance(document, dict):
        document = json.loads(json.dumps(document).replace("URL", issuer.url))
    issuer.changed[path] = document
    with pytest.raises(Unavailable, match=problem):
        keys.find("one")


def test_keys_that_are_weak_private_or_for_encryption_are_left_out(issuer: Issuer, keys: IssuerKeys):
    (good,) = issuer.jwks()["keys"]
    others = [
        {**good, "kid": "encrypts", "use": "enc"},
        {**good, "kid": "other-alg", "alg": "ES512"},
        {**good, "kid": "private", "d": good["x"]},
        {"kty": "RSA", "kid": "weak", "n": "_" * 171 + "w", "e": "AQAB"},
        {name: value for name, value in good.items() if name != "kid"},
    ]
    issuer.changed["/keys"] = {"keys": [*others, good]}
    assert keys.find("one") is not None
    assert [kid for kid in ("encrypts", "other-alg", "private", "weak") if keys.recall(kid)] == []


def test_a_configured_address_of_the_keys_needs_no_discovery(issuer: Issuer):
    issuer.changed["/.well-known/openid-configuration"] = None
    keys = IssuerKeys(issuer.settings(jwks_uri=f"{issuer.url}/keys"))
    assert keys.find("one") is not None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"issuer": "http://login.example"}, "issuer"),
        ({"jwks_uri": "ftp://login.example"}, "jwks_uri"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audience": []}, "audience"),
        ({"grants": [{"claim": "g", "value": "v", "grant": "king:payments"}]}, "grants.0.grant"),
        ({"grants": []}, "grants"),
        ({"leeway": 5}, "leeway"),
    ],
)
def test_wrong_settings_are_refused_naming_the_field(changes, field):
    given = {"issuer": "https://login.example", "audience": "toque", "grants": GRANTS}
    with pytest.raises(InvalidInput, match=field):
        OidcSettings.parse(json.dumps(given | changes))


def test_settings_come_from_the_environment_as_json_or_a_file(tmp_path):
    given = json.dumps({"issuer": "https://login.example", "audience": "toque", "grants": GRANTS})
    (tmp_path / "oidc.json").write_text(given)
    found = OidcSettings.from_environment({"TOQUE_OIDC": given})
    assert found == OidcSettings.from_environment({"TOQUE_OIDC": f"{tmp_path}/oidc.json"})
    assert found == OidcSettings.parse(found.model_dump_json())
    assert OidcSettings.from_environment({}) is None
    with pytest.raises(InvalidInput, match="neither JSON nor a file"):
        OidcSettings.from_environment({"TOQUE_OIDC": "/none"})
