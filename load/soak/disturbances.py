"""Disturbances of a soak, one after another, for as long as it lasts: what changes, and what is broken, beside the load."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from toque.load.soak.project import RETRAINED, STEADY
from toque.load.soak.verdict import has_ended, held_by

_BACK_S = 180.0  # for a killed process, or a promoted version
_FULL_S = 10.0
_ROUND_S = 1.0
_DYING_S = 0.005


@dataclass(frozen=True, slots=True)
class Event:
    """Disturbance of the platform and when it was made. at: seconds since the epoch; problem: why it could not be made, or empty."""

    at: float
    name: str
    problem: str = ""


@dataclass
class Disturbances:
    """Thread that disturbs a platform. every_s: pause between two; small_disk: folder that may be filled up, or None.

    client: with an admin's token; retrain: trains the model that is retrained, and returns its version. kills: from when to when a
    process died, as its connections live until its memory is given back.
    """

    client: httpx.Client
    home: Path
    every_s: float
    small_disk: Path | None
    retrain: Callable[[], int]
    events: list[Event] = field(default_factory=list)
    kills: list[tuple[float, float]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Disturb until `stop` is set."""
        kinds: list[tuple[str, Callable[[], None]]] = [
            ("promotion", self._promote),
            ("retrain", self._retrain),
            ("kill a replica", lambda: self._kill(f"predictor-{STEADY}")),
            ("promotion", self._promote),
            ("kill the ticker", lambda: self._kill("ticker")),
            ("kill the gateway", lambda: self._kill("gateway")),
        ]
        if self.small_disk:
            kinds.append(("full disk", self._fill))
        for name, make in itertools.cycle(kinds):
            if self.stop.wait(self.every_s):
                return
            began = time.time()
            try:
                make()
                self.events.append(Event(began, name))
            except (httpx.HTTPError, OSError, TimeoutError) as error:
                self.events.append(Event(began, name, f"{type(error).__name__}: {error}"))

    def _promote(self) -> None:
        """Give the steady model its other version."""
        model = self._ask("GET", f"/models/{STEADY}")
        other = 2 if model["aliases"]["champion"] == 1 else 1
        self._set_champion(STEADY, other)

    def _retrain(self) -> None:
        """Train the next version of the model that is retrained, and promote it."""
        self._set_champion(RETRAINED, self.retrain())

    def _set_champion(self, model: str, version: int) -> None:
        body = {"version": version, "reason": "soak"}
        self._ask("POST", f"/models/{model}/promote", json=body)

    def _kill(self, name: str) -> None:
        """Kill the youngest replica of an application, and wait until there are as many as before."""
        before = self._replicas(name)
        if not before:
            raise OSError(f"no process is a replica of {name}")
        deadline, began = time.monotonic() + _BACK_S, time.time()
        os.kill(max(before), signal.SIGKILL)
        while not has_ended(max(before)) and time.monotonic() < deadline:
            time.sleep(_DYING_S)
        self.kills.append((began, time.time()))
        while len(self._replicas(name) - {max(before)}) < len(before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no new replica of {name} within {_BACK_S:.0f} s")
            time.sleep(_ROUND_S)

    def _replicas(self, name: str) -> set[int]:
        return {pid for pid, held in held_by(self.home).items() if name == held.role}

    def _fill(self) -> None:
        """Fill the disk of the prediction log, and empty it again after some seconds."""
        assert self.small_disk is not None  # noqa: S101 - else this is no disturbance
        filler = self.small_disk / "filler"
        try:
            with filler.open("wb", buffering=0) as sink, contextlib.suppress(OSError):
                while sink.write(b"\0" * (1 << 16)):
                    pass
            self.stop.wait(_FULL_S)
        finally:
            filler.unlink(missing_ok=True)

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask the gateway, again and again while it is away. Raises: httpx.HTTPError."""
        deadline = time.monotonic() + _BACK_S
        while True:
            try:
                return self.client.request(method, path, **options).raise_for_status().json()
            except httpx.HTTPError as error:
                refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500
                if refused or time.monotonic() > deadline:
                    raise
            time.sleep(_ROUND_S)
