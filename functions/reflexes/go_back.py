"""Return to the version before a champion that breaks soon after its release, where the policy says so."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from toque.functions.monitoring import Alarm, Alarms
from toque.functions.rollout import RolloutPolicy
from toque.registry import Refused, Stale
from toque.registry.journal import Entry
from toque.registry.models.traffic import CHAMPION

_logger = logging.getLogger(__name__)


class Champions(Protocol):
    """Operations of the registry that a return needs."""

    def history(self, name: str, /) -> list[Entry]:
        """List the changes of a model, oldest first."""
        ...

    def rollback(self, name: str, alias: str, /, *, expected: int | None, to: int | None, reason: str) -> Any:
        """Point an alias back to version `to`. Raises: Stale; Refused."""
        ...


def go_back(
    registry: Champions, alarms: Alarms, alarm: Alarm, version: int, policy: RolloutPolicy, now: datetime
) -> bool:
    """Make the version before `version` the champion again; returns whether it was done by this call.

    Only where `version` was released within `policy.go_back_within`, and no alarm of this kind was ever raised about the
    version before: a fault that both share is not mended by going back. The registry takes it once, for one champion.
    """
    release = _release(registry.history(alarm.model), version)
    if release is None or release[0] < now - policy.go_back_within:
        return False
    before = release[1]
    if _was_broken(alarms, before):
        return False
    try:
        found = registry.rollback(
            alarm.model, CHAMPION, expected=version, to=before, reason=f"goes back by itself: {alarm.key}"
        )
    except (Stale, Refused) as error:
        _logger.warning("%s: version %d breaks and stays: %s", alarm.model, version, error)
        return False
    _logger.warning("%s: back to version %s from %d: %s", alarm.model, found.version, version, alarm.text)
    return True


def _release(entries: Iterable[Entry], version: int) -> tuple[datetime, int] | None:
    """Find when a version last took the champion's place, and whose; None if it never took another's.

    The return to a version is no release of it: nothing in it is new.
    """
    champion: int | None = None
    release: tuple[datetime, int] | None = None
    for entry in entries:
        body = entry.body
        if body.get("alias") != CHAMPION or "version" not in body:
            continue
        replaced, champion = champion, body["version"]
        if body["kind"] == "alias" and champion == version and replaced not in {None, version}:
            release = entry.at, replaced
    return release


def _was_broken(alarms: Alarms, version: int) -> bool:
    return any(
        one.monitor == "service" and one.version == version and not one.recovered for one in alarms.all()
    )
