"""Settings of the issuer whose tokens are accepted, and of the grants that their claims give."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from toque.registry import Grant, InvalidInput, Limits
from toque.registry.access import UNLIMITED

__all__ = ["Algorithm", "ClaimGrant", "OidcClient", "OidcSettings", "check_url"]

Algorithm = Literal["RS256", "ES256", "EdDSA"]
_VARIABLE = "TOQUE_OIDC"


def _parsed_grant(value: Any) -> Any:
    return Grant.parse(value) if isinstance(value, str) else value


class ClaimGrant(BaseModel):
    """Grant for every token whose claim has a value, or a list with it.

    claim: its name, or the names on the way to it, as in ["realm_access", "roles"]. grant: as `role:workspace`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    claim: str | tuple[str, ...]
    value: str
    grant: Annotated[Grant, BeforeValidator(_parsed_grant)]

    def fits(self, claims: Mapping[str, Any]) -> bool:
        """Whether the claims of a verified token give the grant."""
        found: Any = claims
        for name in (self.claim,) if isinstance(self.claim, str) else self.claim:
            found = found.get(name) if isinstance(found, Mapping) else None
        return self.value in found if isinstance(found, list) else found == self.value


class OidcClient(BaseModel):
    """Registration of the console at the issuer, by which people sign in there.

    id: its client ID, which must be one of the audiences. secret: of a confidential client; None: a public one, which PKCE
    protects. scopes: asked for beside `openid`, such as those that bring the claims of `grants`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    secret: SecretStr | None = None
    scopes: tuple[str, ...] = ("profile",)


class OidcSettings(BaseModel):
    """Settings of one OpenID Connect issuer.

    issuer: its URL, exactly as its tokens state it. audience: one that a token must be made for, or several of which
    it must have one. jwks_uri: address of its keys; None: the one in its discovery document. name_claim: becomes the
    principal's name, after `oidc:`. grants: what claims give; a token that none fits may do nothing. leeway_s: by how
    much the clocks may differ. max_lifetime_s: a token that is valid for longer is refused. limits: of each principal. client: how people sign in
    to the console at the issuer; None: by a token only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    audience: str | tuple[str, ...] = Field(min_length=1)
    jwks_uri: str | None = None
    algorithms: tuple[Algorithm, ...] = Field(default=("RS256", "ES256", "EdDSA"), min_length=1)
    name_claim: str = Field(default="sub", min_length=1)
    grants: tuple[ClaimGrant, ...] = Field(min_length=1)
    leeway_s: float = Field(default=30, ge=0, le=300)
    max_lifetime_s: float = Field(default=86_400, gt=0)
    limits: Limits = UNLIMITED
    client: OidcClient | None = None

    @model_validator(mode="after")
    def _client_is_audience(self) -> Self:
        if self.client is not None and self.client.id not in self.audiences:
            raise ValueError(
                f"client.id={self.client.id!r} is not in audience={list(self.audiences)}: add it, as ID tokens name it there"
            )
        return self

    @field_validator("issuer", "jwks_uri")
    @classmethod
    def _safe(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @property
    def audiences(self) -> tuple[str, ...]:
        """Audiences of which a token must have one."""
        return (self.audience,) if isinstance(self.audience, str) else self.audience

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Read the settings that `TOQUE_OIDC` has as JSON, or whose file it names; None if it is not set.

        Raises: InvalidInput, naming the field.
        """
        text = environment.get(_VARIABLE, "").strip()
        return cls.parse(text) if text else None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse settings from JSON, or from the file of that path. Raises: InvalidInput, naming the field."""
        try:
            source = text if text.startswith("{") else Path(text).read_text()
            return cls.model_validate_json(source)
        except OSError as error:
            raise InvalidInput(f"{_VARIABLE}={text!r}: neither JSON nor a file to read: {error}") from error
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidInput(f"{_VARIABLE}: {problems}") from error


def check_url(url: str) -> str:
    """Return `url` if it is HTTPS, or HTTP on this machine. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.hostname and (parts.scheme == "https" or (parts.scheme == "http" and _is_here(parts.hostname))):
        return url
    raise ValueError(f"{url!r}: keys that decide about access are read from https:// addresses only")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
