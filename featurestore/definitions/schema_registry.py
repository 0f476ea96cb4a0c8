"""Declaration of the registry that knows the schemas by which a stream's messages were written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from toque.featurestore.errors import InvalidDefinition


@dataclass(frozen=True, slots=True)
class SchemaRegistry:
    """Schema registry with Confluent's REST interface; each message begins with a zero byte and the number of its schema.

    url: `https://…`, or `$NAME`, a secret that holds it. login: `$NAME`, a secret that holds `user:password`; empty for a
    registry that asks for none.
    Raises: InvalidDefinition.
    """

    url: str
    login: str = ""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/@]+|\$\w+$", self.url) or "@" in self.url:
            raise InvalidDefinition(
                f"SchemaRegistry: url is like https://registry:8081, without user and password, or names a secret as $REGISTRY; "
                f"got {self.url.rpartition('@')[2]!r}"
            )
        if self.login and not re.match(r"\$\w+$", self.login):
            raise InvalidDefinition(
                "SchemaRegistry: login holds a password; name a secret that holds user:password, as login='$REGISTRY_LOGIN'"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the registry as JSON."""
        return {"url": self.url, "login": self.login}

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that a request needs."""
        return tuple(each[1:] for each in (self.url, self.login) if each.startswith("$"))
