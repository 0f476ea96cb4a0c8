"""Alarms that monitors raise: each is journaled once for its model and published to the subscribers.

One journal a model, `alarms/{model}`. An alarm's key names what was found and where, so a monitor that runs again over the
same rows raises nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.registry import Entry, Fold, Journal, ObjectStore

TOPIC = "alarm"
Monitor = Literal[
    "performance",
    "drift",
    "answers",
    "quality",
    "operations",
    "age",
    "schedule",
    "volume",
    "manual",
    "rollout",
    "service",
]
Publish = Callable[[str, dict[str, Any], str], object]
_MAX_KEYS = 512  # keys that the fold keeps


class Alarm(BaseModel):
    """Alarm that a person, or retraining, should look at."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(
        description="Key that says what was found and where; an alarm of the same key is raised once."
    )
    model: str = Field(description="Name of the model that it concerns.")
    monitor: Monitor = Field(description="Monitor, or other part of the platform, that raised it.")
    subject: str = Field(description="What it is about: a measure, columns, a limit.")
    version: int = Field(description="Version that it concerns, mostly the champion; 0 without one.")
    raised_at: AwareDatetime = Field(description="Time at which it was raised, with an offset from UTC.")
    start: AwareDatetime = Field(
        description="Begin of the prediction times of the rows that it was found in; included."
    )
    end: AwareDatetime = Field(
        description="End of the prediction times of the rows that it was found in; not included."
    )
    text: str = Field(description="What was found, in words.")
    statistic: float | None = Field(
        default=None,
        description="What was measured, such as a detector's level or a p-value; null if nothing was.",
    )
    threshold: float | None = Field(default=None, description="Limit that the statistic is held against.")
    recovered: bool = Field(default=False, description="Whether this says that the alarm is over.")
    columns: tuple[str, ...] = Field(
        default=(), description="Features that it concerns, where it concerns single ones."
    )
    explained_by: tuple[str, ...] = Field(
        default=(),
        description="Keys of the data-quality incidents that spoiled these columns; such an alarm needs no action.",
    )


class AlarmState(BaseModel):
    """State folded from the journal. keys: of the last alarms; standing: not recovered, by monitor and subject."""

    model_config = ConfigDict(frozen=True)

    keys: tuple[str, ...] = ()
    standing: dict[str, Alarm] = {}


def alarm_journal(
    model: str, *, store: ObjectStore, clock: Callable[[], datetime], actor: str
) -> Fold[AlarmState]:
    """Open the journal of a model's alarms."""
    return Fold(
        Journal(store, f"alarms/{model}", actor=actor, clock=clock),
        AlarmState(),
        step,
        encode=lambda state: state.model_dump(mode="json"),
        decode=AlarmState.model_validate,
    )


class Alarms:
    """Journal of the alarms of one model.

    publish: sends (topic, payload, key) to subscribers; a key that was published before is not sent again.
    """

    def __init__(
        self,
        model: str,
        *,
        store: ObjectStore,
        clock: Callable[[], datetime],
        actor: str,
        publish: Publish,
    ) -> None:
        self._publish = publish
        self._fold = alarm_journal(model, store=store, clock=clock, actor=actor)

    def report(self, alarm: Alarm) -> bool:
        """Publish and record `alarm`; returns whether it was new."""
        body = {"alarm": alarm.model_dump(mode="json")}
        if alarm.key in self._fold.refresh().keys:
            return False
        # Published before it is recorded: after a crash between the two it is published again under the same key, never lost.
        self._publish(TOPIC, body["alarm"], alarm.key)
        return self._fold.transact(lambda state: None if alarm.key in state.keys else body) is not None

    def standing(self) -> list[Alarm]:
        """List the alarms that were raised and have not recovered, oldest first."""
        return sorted(self._fold.refresh().standing.values(), key=lambda alarm: alarm.raised_at)

    def all(self) -> list[Alarm]:
        """List every alarm and recovery, oldest first."""
        return alarms_in(self._fold.journal.entries())


def alarms_in(entries: Iterable[Entry]) -> list[Alarm]:
    """Read the alarms in entries of the journal `alarms/{model}`."""
    return [Alarm.model_validate(entry.body["alarm"]) for entry in entries]


def models_in(store: ObjectStore, folder: str) -> Iterator[str]:
    """Iterate over the models that ever had a journal in a folder, such as `alarms`, by one listing for each."""
    prefix = after = f"{folder}/"
    while (key := next(iter(store.list(prefix, after=after)), None)) is not None:
        model = key.removeprefix(prefix).partition("/")[0]
        yield model
        after = f"{prefix}{model}0"  # the code point after "/": past all keys of this journal


def step(state: AlarmState, entry: Entry) -> AlarmState:
    """Fold one journal entry into the state."""
    alarm = Alarm.model_validate(entry.body["alarm"])
    about = f"{alarm.monitor}/{alarm.subject}"
    standing = {name: other for name, other in state.standing.items() if name != about}
    if not alarm.recovered:
        standing[about] = alarm
    return AlarmState(keys=(*state.keys, alarm.key)[-_MAX_KEYS:], standing=standing)
