"""Verification of an issuer's signed tokens, and the principals that they stand for.

The issuer's public keys are fetched when they are first needed, renewed, and kept for a while when it is away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from cachetools import LRUCache

from toque.ray_apps.oidc.settings import OidcSettings, check_url
from toque.registry import InvalidInput, Principal, Unavailable

if TYPE_CHECKING:
    from jwt import PyJWK

    from toque.ray_apps.token_cache import AccessList


NAME_PREFIX: Final = "oidc:"
"""Begins the name of every principal of an issuer; no token of the access list has such a name."""
MAX_TOKEN_CHARS: Final = 16_384
_MAX_NAME = 128
_ACCEPTED_KEPT = 4_096
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
_REQUIRED = ["exp", "iss", "aud"]
Find = Callable[[str], "PyJWK | None"]
RENEW_S: Final = 300.0
"""Age at which the keys are read again."""
RETRY_S: Final = 30.0
"""Time between two reads for a key that is not among those known, or after a failure."""
FIRST_RETRY_S: Final = 2.0
"""Time between two reads while there are no keys at all."""
KEEP_S: Final = 6 * 3_600.0
"""Age up to which keys are used while the issuer does not answer."""
_TIMEOUT_S = 5.0
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 64
_MIN_RSA_BITS = 2_048
_DISCOVERY: Final = "/.well-known/openid-configuration"
_KINDS: dict[tuple[str, str | None], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
Json = Mapping[str, Any]
_logger = logging.getLogger(__name__)


class _Verified(NamedTuple):
    """A token whose signature was checked: by which key, until when it counts, and for whom."""

    key_id: str
    key: PyJWK
    until_s: float
    principal: Principal


class OidcVerifier:
    """Finds the principals of one issuer's tokens, as an access list; safe for threads.

    A token that was accepted before is not parsed again while its key stays the issuer's, as callers are verified
    twice a second. keys: of the issuer, fetched by default; clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: OidcSettings,
        *,
        keys: IssuerKeys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._keys = keys or IssuerKeys(settings)
        self._accepted: LRUCache[bytes, _Verified] = LRUCache(_ACCEPTED_KEPT)
        self._lock = threading.Lock()

    def recognises(self, token: str) -> bool:
        """Whether the text has the form of a signed token."""
        return len(token) <= MAX_TOKEN_CHARS and _JWT.match(token) is not None

    def verify(self, token: str) -> Principal | None:
        """Find the principal of a valid token; may read the issuer's keys. Raises: Unavailable."""
        return self._principal(token, self._keys.find)

    def recall(self, token: str) -> Principal | None:
        """Find the principal of a valid token by the keys read last."""
        return self._principal(token, self._keys.recall)

    def check(self, token: str) -> Principal:
        """Find the principal of a token, or tell why there is none. Raises: InvalidInput with the reason; Unavailable."""
        return self._verified(token, self._keys.find).principal

    def _principal(self, token: str, find: Find) -> Principal | None:
        if not self.recognises(token):
            return None
        digest = hashlib.sha256(token.encode()).digest()
        with self._lock:
            known = self._accepted.get(digest)
        if known is not None and self._clock() < known.until_s and find(known.key_id) is known.key:
            return known.principal
        try:
            verified = self._verified(token, find)
        except InvalidInput as error:
            _logger.debug("%s", error)
            return None
        with self._lock:
            self._accepted[digest] = verified
        return verified.principal

    def _verified(self, token: str, find: Find) -> _Verified:
        """Check claims and signature of a token. Raises: InvalidInput with the reason if it is not accepted; Unavailable."""
        import jwt  # late: only where OIDC is configured

        try:
            return self._parsed(token, find)
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise InvalidInput(f"a token of {self._settings.issuer} is refused: {error}") from error

    def _parsed(self, token: str, find: Find) -> _Verified:
        """Check claims first, so that what is expired or of another issuer costs no key, then the signature."""
        checks = ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss")
        stated = self._decode(token, None, [], {"verify_signature": False, **dict.fromkeys(checks, True)})
        algorithm, key_id = stated["header"].get("alg"), stated["header"].get("kid")
        if algorithm not in self._settings.algorithms:
            raise ValueError(f"alg={algorithm!r} is not one of {self._settings.algorithms}")
        if not isinstance(key_id, str) or "crit" in stated["header"]:
            raise ValueError("its header must have 'kid' and no 'crit'")
        key = find(key_id)
        if key is None or key.algorithm_name != algorithm:
            raise ValueError(f"kid={key_id!r} is no key of the issuer for {algorithm}")
        claims = self._decode(token, key, [algorithm], {})["payload"]
        left_s = claims["exp"] - self._clock()
        if left_s > self._settings.max_lifetime_s:
            raise ValueError(
                f"exp is {left_s:.0f} s away; at most {self._settings.max_lifetime_s:g} are accepted"
            )
        return _Verified(key_id, key, claims["exp"] + self._settings.leeway_s, self._named(claims))

    def _decode(self, token: str, key: Any, algorithms: list[str], options: dict[str, Any]) -> dict[str, Any]:
        """Decode header and claims with PyJWT, which checks what `options` do not switch off. Raises: jwt.PyJWTError."""
        import jwt  # late: as above

        settings = self._settings
        found: dict[str, Any] = jwt.decode_complete(
            token,
            key=key,
            algorithms=algorithms,
            audience=settings.audiences,
            issuer=settings.issuer,
            leeway=settings.leeway_s,
            options=cast("Any", {"require": _REQUIRED, **options}),
        )
        return found

    def _named(self, claims: Mapping[str, Any]) -> Principal:
        """Make the principal of verified claims. Raises: ValueError if they name nobody."""
        claim = self._settings.name_claim
        name = claims.get(claim)
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= _MAX_NAME
            or not name.isprintable()
            or " " in name
        ):
            raise ValueError(
                f"claim {claim!r} is no name of 1 to {_MAX_NAME} printable characters without spaces"
            )
        if claim == "email" and claims.get("email_verified") is not True:
            raise ValueError(
                "the issuer does not say that it verified the e-mail address (email_verified); "
                "have it say so, or take another name_claim, such as sub"
            )
        grants = dict.fromkeys(each.grant for each in self._settings.grants if each.fits(claims))
        return Principal(name=NAME_PREFIX + name, grants=tuple(grants), limits=self._settings.limits)


class _Both:
    """Access list in front of an issuer: a text has the form of a token of one or the other."""

    def __init__(self, access: AccessList, oidc: OidcVerifier) -> None:
        self._access, self._oidc = access, oidc

    def recognises(self, token: str) -> bool:
        return self._access.recognises(token) or self._oidc.recognises(token)

    def verify(self, token: str) -> Principal | None:
        return self._of(token).verify(token)

    def recall(self, token: str) -> Principal | None:
        return self._of(token).recall(token)

    def _of(self, token: str) -> AccessList:
        return self._access if self._access.recognises(token) else self._oidc


def with_oidc(access: AccessList, settings: OidcSettings | None) -> AccessList:
    """Extend an access list by the tokens of an issuer; the list itself if there are no settings."""
    return access if settings is None else _Both(access, OidcVerifier(settings))


@dataclass(frozen=True, slots=True)
class _Keys:
    by_id: Mapping[str, PyJWK]
    read_at_s: float


class IssuerKeys:
    """Keys of one issuer by id; safe for threads.

    fetch: reads the JSON object at a URL, and raises ValueError if it cannot; clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: OidcSettings,
        *,
        fetch: Callable[[str], Json] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._fetch, self._clock = settings, fetch or fetch_json, clock
        self._keys: _Keys | None = None
        self._tried_at_s: float | None = None
        self._problem = "it was not asked yet"
        self._lock = threading.Lock()

    def find(self, key_id: str) -> PyJWK | None:
        """Find a key, reading the issuer's keys if this one is not known or they are old.

        Raises: Unavailable if the issuer does not answer and there are no keys, or none that are young enough.
        """
        known = self.recall(key_id)
        if known is None or self._age_s() >= RENEW_S:
            if self._lock.acquire(blocking=known is None):  # a known key does not wait for the issuer
                try:
                    self._renew(key_id)
                finally:
                    self._lock.release()
            if self._age_s() > KEEP_S:
                raise Unavailable(f"the keys of {self._settings.issuer} cannot be read: {self._problem}")
        return self.recall(key_id)

    def recall(self, key_id: str) -> PyJWK | None:
        """Find a key among those read last, without asking the issuer."""
        keys = self._keys
        return keys.by_id.get(key_id) if keys is not None and self._age_s() <= KEEP_S else None

    def _age_s(self) -> float:
        return float("inf") if self._keys is None else self._clock() - self._keys.read_at_s

    def _renew(self, key_id: str) -> None:
        """Read the keys, unless that has just been tried; keep the old ones if it fails."""
        now_s = self._clock()
        if self._age_s() < RENEW_S and self.recall(key_id) is not None:
            return  # another thread has read them meanwhile
        pause_s = FIRST_RETRY_S if self._keys is None else RETRY_S
        if self._tried_at_s is not None and now_s - self._tried_at_s < pause_s:
            return
        self._tried_at_s = now_s
        try:
            self._keys = _Keys(parse_keys(self._fetch(self._address()), self._settings), now_s)
        except ValueError as error:
            self._problem = str(error)

    def _address(self) -> str:
        """Address of the keys, by the issuer's discovery document unless it is configured. Raises: ValueError."""
        if self._settings.jwks_uri is not None:
            return self._settings.jwks_uri
        return check_url(str(discovery(self._settings, fetch=self._fetch).get("jwks_uri")))


def discovery(settings: OidcSettings, *, fetch: Callable[[str], Json]) -> Json:
    """Read the issuer's discovery document. Raises: ValueError if it is not this issuer's."""
    found = fetch(settings.issuer.rstrip("/") + _DISCOVERY)
    if found.get("issuer") != settings.issuer:
        raise ValueError(f"its discovery document is of issuer {found.get('issuer')!r}")
    return found


def parse_keys(document: Json, settings: OidcSettings) -> dict[str, PyJWK]:
    """Parse the keys of a JWKS document that may sign tokens, by id. Raises: ValueError if there are none."""
    from jwt import PyJWK, PyJWTError  # late: only where OIDC is configured

    listed = document.get("keys")
    found: dict[str, PyJWK] = {}
    for entry in (listed if isinstance(listed, list) else [])[:_MAX_KEYS]:
        algorithm = _algorithm(entry)
        if algorithm not in settings.algorithms:
            continue
        with suppress(PyJWTError):  # a key that is none does not take the others with it
            key = PyJWK(entry, algorithm)
            if algorithm != "RS256" or key.key.key_size >= _MIN_RSA_BITS:
                found.setdefault(entry["kid"], key)
    if not found:
        raise ValueError(f"its key set has no key for {', '.join(settings.algorithms)}")
    return found


def _algorithm(entry: Any) -> str | None:
    """Algorithm of a public signing key with an id; None for every other entry of a key set."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("kid"), str) or "d" in entry:
        return None
    if entry.get("use", "sig") != "sig":
        return None
    algorithm = _KINDS.get((str(entry.get("kty")), entry.get("crv")))
    return algorithm if entry.get("alg", algorithm) == algorithm else None


def fetch_json(url: str) -> Json:
    """Read the JSON object at a URL within five seconds and 256 KiB; no redirect is followed. Raises: ValueError."""
    import httpx  # late: as above

    deadline = time.monotonic() + _TIMEOUT_S
    data = bytearray()
    try:
        with httpx.stream(
            "GET", url, timeout=_TIMEOUT_S, headers={"Accept-Encoding": "identity"}, follow_redirects=False
        ) as answer:
            if answer.status_code != httpx.codes.OK:
                raise ValueError(f"{url} answers {answer.status_code}")
            for chunk in answer.iter_raw():
                data += chunk
                if len(data) > _MAX_BYTES or time.monotonic() > deadline:
                    raise ValueError(
                        f"{url} is larger than {_MAX_BYTES} bytes or takes over {_TIMEOUT_S:g} s"
                    )
        found = json.loads(data)
    except (httpx.HTTPError, RecursionError) as error:
        raise ValueError(f"{url}: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{url} is no JSON object")  # noqa: TRY004  # of the issuer's answer, not of a caller's argument
    return found
