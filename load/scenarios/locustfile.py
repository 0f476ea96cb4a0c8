"""Locust user that speaks the Open Inference Protocol; `python -m load.scenarios.run` starts it, or locust by hand.

Reads from the environment: TOQUE_TOKEN (bearer token), TOQUE_MODEL, TOQUE_LOAD_RATE (requests a second and user),
TOQUE_LOAD_ROWS (rows a request), TOQUE_LOAD_KEYS (file of rows for requests by key; without it tensors are sent) and
TOQUE_LOAD_LOG (file that gets a line of JSON for each request: when it was due, milliseconds, version, failure).
"""

import itertools
import json
import os
import random
import time
import uuid
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events
from locust.exception import StopUser

from load.scenarios.payload import Json, keyed_request, problem_of, read_rows, tensor_request

NAME = "infer"  # of the statistics that are judged

_seeds = itertools.count()
_started = time.time() - time.perf_counter()


def _log(due: float, answer: Any, problem: str | None) -> None:
    """Add a request to the log, if one is kept."""
    if path := os.environ.get("TOQUE_LOAD_LOG"):
        version = answer.get("model_version") if isinstance(answer, dict) else None
        line = {
            "due": _started + due, "ms": (time.perf_counter() - due) * 1e3, "version": version, "failure": problem,
        }  # fmt: skip
        with Path(path).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


@events.quitting.add_listener  # type: ignore[untyped-decorator] # locust ships no types for its events
def _write_failures(environment: Any, **_: object) -> None:
    """Write what went wrong, and how often, to the file that the caller named."""
    if path := os.environ.get("TOQUE_LOAD_FAILURES"):
        failures = {str(error.error): error.occurrences for error in environment.stats.errors.values()}
        Path(path).write_text(json.dumps(failures), encoding="utf-8")


class InferenceUser(FastHttpUser):
    """Locust user that sends inference requests on a schedule and times each from the moment it was due."""

    network_timeout = 30.0
    connection_timeout = 5.0

    def on_start(self) -> None:
        """Ask the server what its model takes; without an answer there is nothing to send."""
        self.model = os.environ["TOQUE_MODEL"]
        self.rows = int(os.environ.get("TOQUE_LOAD_ROWS", "1"))
        self.every_s = 1.0 / float(os.environ.get("TOQUE_LOAD_RATE", "5"))
        token = os.environ.get("TOQUE_TOKEN")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.rng = random.Random(next(_seeds))
        keys = os.environ.get("TOQUE_LOAD_KEYS")
        self.keys = read_rows(Path(keys)) if keys else []
        with self.client.get(f"/v2/models/{self.model}", headers=self.headers, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(
                    f"no metadata of model {self.model!r}: {answer.status_code} {answer.text!r:.120}"
                )
                raise StopUser
            self.metadata = answer.json()
        self.due = time.perf_counter() + self.rng.random() * self.every_s  # users do not march in step

    def wait_time(self) -> float:
        """Return the seconds until the next request is due; 0 if it is late."""
        return max(0.0, self.due - time.perf_counter())

    def _request(self) -> Json:
        if self.keys:
            return keyed_request([self.rng.choice(self.keys) for _ in range(self.rows)])
        return tensor_request(self.metadata, rows=self.rows, rng=self.rng)

    def infer(self) -> None:
        """Send one request, check the answer, and count from when it was due."""
        due, self.due = self.due, self.due + self.every_s
        body = {"id": uuid.uuid4().hex, **self._request()}
        path = f"/v2/models/{self.model}/infer"
        with self.client.post(
            path, json=body, headers=self.headers, name=NAME, catch_response=True
        ) as answer:
            answer.request_meta["response_time"] = (time.perf_counter() - due) * 1e3
            document = answer.json() if answer.status_code == 200 else None
            if document is not None:
                problem = problem_of(document, sent_id=body["id"])
            else:
                problem = f"{answer.status_code}: {answer.text!r:.120}"
            if problem:
                answer.failure(problem)
        _log(due, document, problem)

    tasks = [infer]  # noqa: RUF012 - how locust is told
