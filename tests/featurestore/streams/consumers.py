"""Consumers of a log that are killed at random lines, and among whom its partitions move."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

from tests.featurestore.streams.history import MemoryLog
from toque.featurestore import FeatureStore, UnreadableSource
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.table import StreamTable, rewrites_of


class Killed(BaseException):
    """Ends a consumer where it stands, as SIGKILL would."""


class Deferred(Future[float]):
    """Commit that is made at some look at it: by then, or only when it is waited for."""

    def __init__(self, chance: random.Random, run: Callable[[], float]) -> None:
        super().__init__()
        self._chance, self._run = chance, run

    def done(self) -> bool:
        if not super().done() and self._chance.random() < 0.5:
            self.make()
        return super().done()

    def result(self, timeout: float | None = None) -> float:
        self.make()
        return super().result(timeout)

    def make(self) -> None:
        """Make the commit, if it was not made."""
        if super().done():
            return
        try:
            self.set_result(self._run())
        except BaseException as error:  # noqa: BLE001 - as the thread that it stands for hands it on
            self.set_exception(error)


class Writer:
    """Thread of a consumer's commits, without a thread: so a history is the same each time it is run."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._last: Deferred | None = None

    def submit(self, run: Callable[..., float], *given: Any) -> Deferred:
        self._last = Deferred(self._chance, partial(run, *given))
        return self._last

    def shutdown(self, *, wait: bool = True) -> None:
        """End; a consumer that is killed may have sent its last commit already, which comes to the store after that."""
        if self._last is not None and (wait or self._chance.random() < 0.5):
            self._last.make()


BEHIND = (timedelta(0), timedelta(0), timedelta(seconds=3), timedelta(minutes=2), timedelta(minutes=30))
"""How far the clocks of consumers are behind the log's."""


class Consumers:
    """Some consumers among whom the partitions are dealt anew now and then, and of whom one is killed now and then.

    All that is left to chance is drawn in the thread of the test, so a seed gives the same history again.
    """

    def __init__(self, features: FeatureStore, log: MemoryLog, chance: random.Random) -> None:
        self._features, self._log, self._chance = features, log, chance
        self._owned: list[set[int]] = [set(range(log.partitions)), set()]
        self._running = [self._start(0), self._start(1)]

    def _start(self, number: int, *, mortal: bool = True) -> StreamConsumer:
        table = self._features.stream_table("clicks")
        commit, behind = table.commit, self._chance.choice(BEHIND) if mortal else timedelta(0)

        def sometimes_killed(*given: Any, **more: Any) -> None:
            if self._chance.random() < 0.1:
                raise Killed
            commit(*given, **more)
            if self._chance.random() < 0.1:
                raise Killed

        if mortal:
            table.commit = sometimes_killed  # type: ignore[method-assign]
        made = StreamConsumer(
            table,
            self._features.list_feature_views(),
            self._log.connect(),
            online=self._features.online,
            owned=lambda: self._owned[number],
            clock=lambda: self._features.now() - behind,
            poll_rows=self._chance.choice([1, 3, 100]),
            rewrites=rewrites_of(self._features.online, "clicks"),
        )
        made._measured_at = float("inf")  # a step does not depend on how long the last one took
        made._commits._writer.shutdown()
        made._commits._writer = Writer(self._chance)  # type: ignore[assignment]
        return made

    def begin_anew(self) -> None:
        """Replace all, as when a definition has changed."""
        for number in (0, 1):
            self._replace(number)

    def lose(self, partition: int) -> int:
        """Cut off all that a partition has and nobody has read; returns how many messages are lost."""
        self.begin_anew()
        place = self._places(self._features.stream_table("clicks"))[partition]
        end = len(self._log.messages[partition])
        self._log.cut_off(partition, end, unread=place)
        return end - place

    def trim(self) -> None:
        """Cut off some of what was read and committed of each partition, but for its last message."""
        for each, place in self._places(self._features.stream_table("clicks")).items():
            first = self._log.first.get(each, 0)
            self._log.cut_off(each, self._chance.randint(first, max(first, place - 1)))

    def step(self) -> None:
        chance = self._chance
        if chance.random() < 0.1:
            dealt = [chance.randrange(2) for _ in range(self._log.partitions)]
            both = chance.random() < 0.3  # for a while two believe to own it
            self._owned = [
                {each for each, to in enumerate(dealt) if to == number or (both and each == 0)}
                for number in (0, 1)
            ]
        for number in (0, 1):
            lines = chance.randrange(1, 800) if chance.random() < 0.2 else None
            try:
                with killed_after(lines):
                    self._running[number].step(timeout_s=self._log.patience_s)
            except Killed:
                self._replace(number)
            except UnreadableSource:
                self._running[number]._begin_anew()  # as `run` does

    def settle(self) -> None:
        """Read all that the log has, undisturbed, by the first: at least once, as time has passed since the last step."""
        self._owned = [set(range(self._log.partitions)), set()]
        last = self._replace(0, mortal=False)
        last._poll_rows = 1000
        ends = {each: len(sent) for each, sent in enumerate(self._log.messages)}
        last.step(timeout_s=self._log.patience_s)
        while self._places(last._table) != ends:
            last.step(timeout_s=self._log.patience_s)

    def _replace(self, number: int, *, mortal: bool = True) -> StreamConsumer:
        self._end(self._running[number])
        self._running[number] = self._start(number, mortal=mortal)
        return self._running[number]

    def close(self) -> None:
        """Let go of the threads and connections of all."""
        for each in self._running:
            self._end(each)

    def _end(self, consumer: StreamConsumer) -> None:
        consumer._commits._writer.shutdown(wait=False)
        consumer._connection.close()

    def _places(self, table: StreamTable) -> dict[int, int]:
        return {
            each: place.position if place else 0
            for each, place in table.places(range(self._log.partitions)).items()
        }


class killed_after:  # noqa: N801  # reads as a verb
    """Kills what runs within the block at a line of the streams' code, counted from its beginning; None: not at all."""

    def __init__(self, lines: int | None) -> None:
        self._left = lines

    def __enter__(self) -> None:
        if self._left is not None:
            sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, what: str, arg: object) -> Any:
        del arg
        if "featurestore/streams/" not in frame.f_code.co_filename:
            return None
        if what == "line" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Killed
        return self._trace
