"""Asks the door of language models as callers do, and compares the arms that answered."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from examples.capitals.data import CAPITALS, question
from toque.functions.evaluation.language import Scorer
from toque.functions.stats.comparison.sequential import asymptotic_cs

__all__ = ["Answer", "Door", "Tally", "Tested", "ab_test"]

_START_S = 120.0
_EXACT = Scorer()
_LEAST = 60
"""Answers before the first look: the sequence is asymptotic, and fewer shares of right answers are no normal numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer of the door to one question. score: 1 if it is the city alone."""

    arm: str
    version: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Door:
    """A running door of language models, in a process of its own."""

    url: str
    token: str

    @classmethod
    @contextmanager
    def open(cls, store_url: str, token: str, log: Path, threads: int) -> Iterator[Door]:
        """Start a door on a store, and end it afterwards. Raises: RuntimeError if it does not start."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        line = [
            sys.executable,
            "-m",
            "toque.ray_apps.generative",
            "--port",
            str(port),
            "--threads",
            str(threads),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own module
                line, stdout=subprocess.PIPE, stderr=output, env={**os.environ, "TOQUE_STORE": store_url}
            )
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"the door does not start: {log.read_text()[-1_000:]}")
            yield cls(f"http://127.0.0.1:{port}/v1/chat/completions", token)
        finally:
            process.terminate()
            process.wait(60)

    def ask(self, model: str, country: str, *, way: int = 0, unit: str | None = None) -> Answer:
        """Ask for a capital, as a unit of its own. Raises: urllib.error.URLError."""
        asked = {"model": model, "messages": [{"role": "user", "content": question(country, way)}]}
        request = urllib.request.Request(  # noqa: S310 - the door's own address
            self.url,
            json.dumps(asked).encode(),
            {
                "authorization": f"Bearer {self.token}",
                "content-type": "application/json",
                "x-toque-unit": unit or f"{country}-{way}",
            },
        )
        with urllib.request.urlopen(request, timeout=_START_S) as answer:  # noqa: S310 - the same
            text = json.load(answer)["choices"][0]["message"]["content"] or ""
            arm, version = answer.headers["x-toque-arm"], int(answer.headers["x-toque-version"])
        return Answer(arm, version, text, _EXACT.score(text, CAPITALS[country]))

    def wait_for(self, model: str, arm: str) -> None:
        """Wait until an arm answers, which may have to start an engine. Raises: TimeoutError."""
        until = time.monotonic() + _START_S
        for number in range(10_000):
            if self.ask(model, "France", unit=f"wait-{number}").arm == arm:
                return
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        raise TimeoutError(f"arm {arm!r} does not answer within {_START_S:g} s")


@dataclass
class Tally:
    """Scores of the answers so far, by arm or another key."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def add(self, answer: Answer, *, key: str | None = None) -> None:
        """Count an answer for the arm that gave it, or for `key`."""
        self.scores.setdefault(key or answer.arm, []).append(answer.score)
        self.versions[key or answer.arm] = answer.version

    def text(self) -> str:
        """Share of right answers of each arm, in words."""
        return ", ".join(
            f"{arm} (version {self.versions[arm]}) {np.mean(each):.0%} of {len(each)} right"
            for arm, each in sorted(self.scores.items())
        )


@dataclass(frozen=True, slots=True)
class Tested:
    """Outcome of an A/B test. proven: whether the challenger is better, however often one looked."""

    asked: int
    proven: bool
    text: str


def ab_test(door: Door, model: str, challenger: str, countries: Sequence[str]) -> Tested:
    """Ask about each country until the challenger is proven better than the champion, looking after every answer."""
    tally, asked = Tally(), 0
    for way in (1, 2, 3):
        for country in countries:
            tally.add(door.ask(model, country, way=way))
            asked += 1
            control = [score for arm, each in tally.scores.items() if arm != challenger for score in each]
            treated = tally.scores.get(challenger, [])
            if len(control) < 2 or len(treated) < 2:
                continue
            look = asymptotic_cs(control, treated, n_opt=150, burn_in=_LEAST, alternative="greater")
            if look.reject:
                return Tested(asked, proven=True, text=f"{tally.text()}, always-valid p = {look.p:.2g}")
    return Tested(asked, proven=False, text=f"{tally.text()}, not proven")
