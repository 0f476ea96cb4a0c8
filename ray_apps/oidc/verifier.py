"""Verification of an issuer's signed tokens, and the principals that they stand for."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from cachetools import LRUCache

from toque.ray_apps.oidc.issuer_keys import IssuerKeys
from toque.ray_apps.oidc.settings import OidcSettings
from toque.registry import InvalidInput, Principal

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
