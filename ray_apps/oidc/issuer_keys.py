"""Public keys of an issuer: fetched when they are first needed, renewed, and kept for a while when it is away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from toque.ray_apps.oidc.settings import OidcSettings, check_url
from toque.registry import Unavailable

if TYPE_CHECKING:
    from jwt import PyJWK

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
