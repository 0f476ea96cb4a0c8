"""The service tier of a request, by which it waits for the engine: what OpenAI's field may say, and who may ask for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.registry import SERVICE_TIERS, Limits, ServiceTier

__all__ = ["FIELD", "check_tier", "granted_tier"]

FIELD: Final = "service_tier"
_AUTO: Final = "auto"
_UNGRANTED: Final = SERVICE_TIERS.index("default")


def check_tier(body: Mapping[str, Any]) -> None:
    """Check the field of a request. Raises: ApiRefusal with the values there are."""
    if body.get(FIELD, _AUTO) not in (_AUTO, *SERVICE_TIERS):
        raise ApiRefusal(
            f"{FIELD}: expected auto, {', '.join(SERVICE_TIERS)}, got {body[FIELD]!r:.80}", param=FIELD
        )


def granted_tier(body: Mapping[str, Any], bounds: Sequence[tuple[str, Limits]]) -> ServiceTier:
    """The tier that a request waits by. bounds: of its token and workspace; none at all where authentication is off.

    Without one of its own, or with `auto`, a request has the tier `default`, or that which it is bounded to. Raises: ApiRefusal 403 if
    it asks for more than it may.
    """
    named = [(SERVICE_TIERS.index(each.service_tier), name) for name, each in bounds if each.service_tier]
    most, whose = min(named, default=(_UNGRANTED, bounds[0][0] if bounds else ""))
    asked = body.get(FIELD, _AUTO)
    if asked == _AUTO:
        return SERVICE_TIERS[min(most, _UNGRANTED)]
    rank = SERVICE_TIERS.index(asked)
    if bounds and rank > most:
        raise ApiRefusal(
            f"{FIELD}: {asked!r} is more than {whose} may ask for, which is {SERVICE_TIERS[most]!r}; leave the field out, or have "
            "an admin allow more (--service-tier)",
            status=403, param=FIELD,
        )  # fmt: skip
    return SERVICE_TIERS[rank]
