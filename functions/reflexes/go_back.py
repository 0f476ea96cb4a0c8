"""Return to the version before a champion that breaks soon after its release, where the policy says so."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Protocol

from toque.functions.monitoring import Alarm, Alarms
from toque.functions.rollout import RolloutPolicy
from toque.registry import Refused, Stale
from toque.registry.models.traffic import CHAMPION

_logger = logging.getLogger(__name__)


class Champions(Protocol):
    """Operations of the registry that a return needs."""

    def alias_at(self, name: str, alias: str, at: datetime, /) -> int | None:
        """Version that an alias pointed to at a moment, or None."""
        ...

    def rollback(self, name: str, alias: str, /, *, expected: int | None, reason: str) -> Any:
        """Point an alias back to its version before. Raises: Stale; Refused."""
        ...


def go_back(
    registry: Champions, alarms: Alarms, alarm: Alarm, version: int, policy: RolloutPolicy, now: datetime
) -> bool:
    """Make the version before `version` the champion again; returns whether it was done by this call.

    Only where `version` was released within `policy.go_back_within`, and no alarm of this kind was ever raised about the
    version before: a fault that both share is not mended by going back. The registry takes it once, for one champion.
    """
    before = registry.alias_at(alarm.model, CHAMPION, now - policy.go_back_within)
    if before is None or before == version or _was_broken(alarms, before):
        return False
    try:
        found = registry.rollback(
            alarm.model, CHAMPION, expected=version, reason=f"goes back by itself: {alarm.key}"
        )
    except (Stale, Refused) as error:
        _logger.warning("%s: version %d breaks and stays: %s", alarm.model, version, error)
        return False
    _logger.warning("%s: back to version %s from %d: %s", alarm.model, found.version, version, alarm.text)
    return True


def _was_broken(alarms: Alarms, version: int) -> bool:
    return any(
        one.monitor == "service" and one.version == version and not one.recovered for one in alarms.all()
    )
