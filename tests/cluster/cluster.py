"""Toque on the machines of a lab, brought up by the commands of docs/cluster.md, and what a test asks of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import yaml

from tests.cluster import roles
from tests.cluster.lab import Lab, until
from tests.cluster.load import Outcome, Plan, read_outcomes
from tests.cluster.project import MODEL

PROJECT = "tests.cluster.project"
PROFILE = "toque.yaml"
PREFIX = "lab"
PLATFORM_APPS = ("gateway", "mlflow", "ticker", "grpc")
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
NODE = ("--node-ip-address={ip}", "--object-store-memory=200000000")


@dataclass
class Cluster:
    """A platform on a head and workers, with a Redis and an S3 server.

    log_mode: of the prediction log; token: its administrator's; timings: seconds that each step took; bare: processor
    share of each node before anything was deployed.
    """

    lab: Lab
    workers: list[str]
    log_mode: str = "file"
    token: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    bare: dict[str, float] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    loads: int = 0
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
    )

    @classmethod
    def nodes(cls, lab: Lab, *, workers: int, log_mode: str = "file") -> Cluster:
        """Redis, an S3 server and the nodes of a cluster, on which nothing is deployed."""
        lab.add("redis", roles.Redis())
        lab.add("s3", roles.S3())
        lab.environment |= {
            "AWS_ACCESS_KEY_ID": lab.secrets.s3_access,
            "AWS_SECRET_ACCESS_KEY": lab.secrets.s3_secret,
            "TOQUE_PROFILE": f"/tmp/{PROFILE}",  # noqa: S108  # the machine's own
        }
        made = cls(lab, [], log_mode)
        begun = time.monotonic()
        lab.add("head", made._node("--head", "--type", "head"))
        made.join(workers)
        made.timings["nodes"] = time.monotonic() - begun
        return made

    def join(self, count: int = 1) -> None:
        """Add new machines to the cluster as workers."""
        known = len(self.workers) + len(self.lost)
        names = [f"worker{known + number}" for number in range(1, count + 1)]
        worker = self._node("--address", "head", "--type", "serve", "--", "--num-cpus=2")
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda name: self.lab.add(name, worker), names))
        self.workers += names

    def lose(self, name: str) -> None:
        """Take the power from a worker, which does not come back."""
        self.workers.remove(name)
        self.lost.add(name)
        self.lab.kill(name)

    def deploy(self) -> None:
        """Deploy the platform, and a model of which one version is the champion."""
        begun = time.monotonic()
        self.lab.run("head", "toque", "deploy", timeout_s=600)
        self.timings["deploy"] = time.monotonic() - begun
        self.token = (self.lab.disk("head") / "home" / ".toque" / "token").read_text().strip()
        self.toque("run", "make_version", "--json", '{"factor": 1.0}', timeout_s=240)
        self.toque("models", "promote", MODEL, "1", "--reason", "the first")
        self.outage(self.workers[0], steady_s=0)
        self.timings["first prediction"] = time.monotonic() - begun

    def toque(self, *command: str, door: str | None = None, timeout_s: float = 120) -> str:
        """Run a command of `toque` as an administrator at a client; returns what it printed."""
        url = f"http://{self.lab.address(door or self.workers[0])}:8000"
        variables = {"TOQUE_URL": url, "TOQUE_TOKEN": self.token, "TOQUE_PROFILE": ""}  # a client has none
        return self.lab.run("client", "toque", *command, timeout_s=timeout_s, **variables)

    def audit(self) -> None:
        """Check every journal of the cluster's store. Raises: RuntimeError if one is not whole; AssertionError if none is."""
        said = self.lab.run("client", "toque", "audit", timeout_s=300, TOQUE_PROFILE=self.client_profile())
        assert not said.startswith("0 journals"), said

    def start_toque(self, machine: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command of `toque` as an administrator on a machine, at the machine's own door."""
        url = f"http://{self.lab.address(machine)}:8000"
        return self.lab.start(machine, "toque", *command, TOQUE_URL=url, TOQUE_TOKEN=self.token)

    def durable_run(self, key: str) -> float:
        """Seconds until a durable invocation with a key, submitted now, has run."""
        begun = time.monotonic()

        def done() -> bool:
            try:
                self.toque(
                    "submit", "echo", "--json", '{"text": "here"}', "--key", key, "--wait", timeout_s=60
                )
            except (RuntimeError, subprocess.TimeoutExpired):
                return False
            return True

        until(done, "a durable invocation ran")
        return time.monotonic() - begun

    def history(self) -> list[str]:
        """The latest entries of the model's journal, each as JSON. Raises: httpx.HTTPError."""
        self.outage(self.workers[0])  # a door that was cut off may start anew
        said = self.ask(
            "GET", self.workers[0], f"/models/{MODEL}/history", params={"limit": 1000}, timeout=30
        )
        return [json.dumps(each) for each in said.raise_for_status().json()]

    def predict(self, door: str, *, timeout_s: float = 5) -> httpx.Response:
        """Ask the model at one door. Raises: httpx.HTTPError."""
        return self.ask("POST", door, f"/v2/models/{MODEL}/infer", json=INFER, timeout=timeout_s)

    def ask(self, method: str, door: str, path: str, **options: Any) -> httpx.Response:
        """Send a request as an administrator to one door. Raises: httpx.HTTPError."""
        headers = {"Authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        with self.lab.network():
            url = f"http://{self.lab.address(door)}:8000{path}"
            return self.http.request(method, url, headers=headers, **options)

    def answers(self, door: str, path: str = "/-/healthz") -> bool:
        """Whether a door answers a GET with 200."""
        try:
            return self.ask("GET", door, path, timeout=3).status_code == 200
        except httpx.HTTPError:
            return False

    def applications(self) -> dict[str, Any]:
        """The state of every Serve application, as the head's dashboard has it; empty while it does not answer."""
        headers = ("-H", f"Authorization: Bearer {self.lab.secrets.ray}")
        address = "http://127.0.0.1:8265/api/serve/applications/"
        try:
            said = self.lab.run("head", "curl", "-sf", "-m", "5", *headers, address, timeout_s=10)
        except (RuntimeError, subprocess.TimeoutExpired):
            return {}
        found: dict[str, Any] = json.loads(said)["applications"]
        return found

    def replicas(self) -> dict[str, Counter[str]]:
        """How many replicas of each application run, by machine."""
        names = {each.address: name for name, each in self.lab.machines.items()}
        return {
            app: Counter(
                names[replica["node_ip"]]
                for deployment in state["deployments"].values()
                for replica in deployment["replicas"]
                if replica["state"] == "RUNNING"
            )
            for app, state in self.applications().items()
        }

    def replica_ids(self) -> set[str]:
        """The ids of all replicas that Serve knows, those that end included."""
        return {
            replica["replica_id"]
            for state in self.applications().values()
            for deployment in state["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] != "STOPPED"
        }

    def lacks(self) -> str:
        """What keeps the cluster from being whole, in words; "" if every application has all its replicas, each on a
        machine that is up, and every door reaches the model.
        """
        found = self.applications()
        for name in (*PLATFORM_APPS, f"predictor-{MODEL}"):
            state = found.get(name, {"status": "missing", "deployments": {}})
            unwell = [each["status"] for each in state["deployments"].values() if each["status"] != "HEALTHY"]
            if state["status"] != "RUNNING" or unwell:
                return f"{name} is {state['status']} {unwell}"
        down = {name for name, each in self.lab.machines.items() if not each.is_up}
        for name, places in self.replicas().items():
            if down & set(places):
                return f"{name} is still counted on {down & set(places)}"
        doors = ("head", *self.workers)
        silent = [each for each in doors if not self.answers(each, f"/v2/models/{MODEL}/ready")]
        return f"the model does not answer at {silent}" if silent else ""

    def wait_whole(self, *, within_s: float = 180) -> float:
        """Wait until the cluster is whole; returns after how many seconds. Raises: TimeoutError, with what it lacks."""
        lacks = [""]

        def whole() -> bool:
            lacks[0] = self.lacks()
            return not lacks[0]

        try:
            return until(whole, "the cluster is whole", within_s=within_s, every_s=1)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {lacks[0]}") from None

    @contextmanager
    def load(
        self, doors: Sequence[str], seconds: float, *, ends_with_block: bool = False, **plan: Any
    ) -> Iterator[list[Outcome]]:
        """Send load to doors while the block runs; the list is filled when the block is left and the load has ended.

        seconds: how long; the block may be shorter. ends_with_block: the load is, then, too. plan: further fields of `Plan`.
        """
        self.loads += 1
        folder = self.lab.folder / "client" / "loads"
        folder.mkdir(parents=True, exist_ok=True)
        file, outcomes, stop = (folder / f"{self.loads}.{name}" for name in ("plan", "outcomes", "stop"))
        addresses = [self.lab.address(door) for door in doors]
        given = Plan(
            doors=addresses,
            token=self.token,
            model=MODEL,
            seconds=seconds,
            prefix=f"load{self.loads}",
            stop=stop,
            **plan,
        )
        file.touch(mode=0o600)
        file.write_text(given.model_dump_json())
        found: list[Outcome] = []
        process = self.lab.start("client", "python", "-m", "tests.cluster.load", str(file), str(outcomes))
        try:
            yield found
            if ends_with_block:
                stop.touch()
            assert process.wait(seconds + 120) == 0, self.lab.log("client").read_text()[-3000:]
            found += read_outcomes(outcomes)
        finally:
            process.kill()
            process.wait()

    def client_profile(self, prefix: str = PREFIX) -> str:
        """The profile's file for a command at a client, which has no /tmp of its own; prefix: of the store in its bucket."""
        file = self.lab.folder / "client" / f"{prefix}-{PROFILE}"
        file.touch(mode=0o600)
        file.write_text(self.profile(prefix))
        return str(file)

    def outage(self, door: str, *, within_s: float = 60, steady_s: float = 1.0) -> float:
        """Seconds from now until a door answers predictions, and goes on for `steady_s`. Raises: TimeoutError."""
        begun = good = time.monotonic()
        while time.monotonic() - good < steady_s:
            if time.monotonic() - begun > within_s:
                raise TimeoutError(f"{door} does not answer predictions after {within_s:.0f} s")
            try:
                well = self.predict(door, timeout_s=1).status_code == 200
            except httpx.HTTPError:
                well = False
            if not well:
                good = time.monotonic()
            time.sleep(0.05)
        return good - begun

    def restore(self, workers: int) -> None:
        """Bring back what a test lost or cut, and nodes that ended; returns when the cluster is whole."""
        for name, machine in self.lab.machines.items():
            if machine.is_up:
                self.lab.heal(name)
            elif name not in self.lost:
                self.lab.add(name)
        for name in self.workers:
            self._restore_worker(name)
        if missing := workers - len(self.workers):
            self.join(missing)
        self.wait_whole()

    def _restore_worker(self, name: str) -> None:
        """Start a worker anew whose door is shut: the head gave it up while it was cut off, as it may on a busy host."""
        try:
            until(lambda: self.answers(name), f"the door of {name} answers", within_s=30)
        except TimeoutError:
            self.lab.kill(name)
            self.lab.add(name)

    def _node(self, *options: str) -> roles.Node:
        more = () if "--" in options else ("--",)
        token = self.lab.secrets.ray
        return roles.Node(
            start=("toque", "node", "start", *options, *more, *NODE),
            files={PROFILE: self.profile(), "home/.ray/auth_token": token},
        )

    def profile(self, prefix: str = PREFIX) -> str:
        """The deployment profile of every node; prefix: of the store in its bucket."""
        content = {
            "cluster": "lab",
            "store": {
                "url": f"s3://{roles.BUCKET}/{prefix}",
                "region": roles.REGION,
                "endpoint": roles.s3_endpoint(self.lab),
            },
            "redis": {"url": roles.redis_url(self.lab)},
            "project": PROJECT,
            "log": {"mode": self.log_mode},
        }
        return yaml.safe_dump(content)
