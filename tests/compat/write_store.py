"""Fill an empty folder with a store of the whole platform, by the code that runs this.

`python -m tests.compat.write_store FOLDER` leaves `FOLDER/store`, the write-ahead files beside it in
`FOLDER/store-wal`, and `FOLDER/expected.json`: what a reader saw of them at that moment, through the public names.
`--pack NAME` packs the two folders as `tests/compat/NAME.tar.gz` and copies the values to `NAME.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.compat import project, reading, tasks
from tests.compat.project import DAY, DRIFT, MODELS, NOW, PERFORMANCE, QUALITY, SERVED_FROM, START
from tests.redis_server import running_redis
from toque.functions import Context, Invocation, use_context
from toque.functions.alerting.jobs import silence_alerts
from toque.functions.features.jobs import build_training_set
from toque.functions.maintenance.registry import tidy_registry
from toque.functions.monitoring import alarms, watch_drift, watch_performance, watch_quality
from toque.functions.prediction_log import (
    Label,
    LogWriter,
    default_wal_root,
    drain,
    encode_labels,
    encode_prediction,
    micros,
)
from toque.functions.quotas import set_quota
from toque.functions.retraining.jobs import request_retrain, retrain
from toque.functions.rollout import (
    MetricValue,
    end_rollout,
    pause_rollout,
    record_metric,
    resume_rollout,
    start_rollout,
    tick_rollout,
)
from toque.functions.runtime import FixedClock
from toque.functions.runtime.durable.invocation import executor_of, run_pending
from toque.functions.runtime.triggers.events import publish, run_events
from toque.functions.runtime.triggers.schedule import run_due
from toque.functions.training import train_tabular
from toque.ray_apps.mlflow import build_app
from toque.registry import (
    Access,
    Condition,
    LayerShare,
    Lineage,
    ModelPolicy,
    Registry,
    Role,
    Signature,
    Table,
    TableSnapshot,
    TensorSpec,
    TrafficRule,
    open_store,
)
from toque.registry.times import to_text

PER_DAY = 36
HOLD = str(Path(tempfile.gettempdir()) / "toque-compat-hold")
LATE = MODELS[0]


def main() -> None:
    """Write a store into an empty folder, and pack it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder, or one that is to be made")
    parser.add_argument("--pack", metavar="NAME", help="pack it beside this program under this name")
    asked = parser.parse_args()
    if asked.folder.exists() and any(asked.folder.iterdir()):
        parser.error(f"{asked.folder} is not empty; give another folder")
    os.environ["TOQUE_PROJECT"] = reading.PROJECT  # a class of the project answers for some versions
    with running_redis(asked.folder / "redis") as server:
        notes = write(asked.folder.resolve(), server.url)
        seen = reading.everything(asked.folder / "store", server.url, notes)
    shutil.rmtree(asked.folder / "redis")
    (asked.folder / "expected.json").write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
    if asked.pack:
        pack(asked.folder, asked.pack)


def pack(folder: Path, name: str) -> None:
    """Pack the store and its write-ahead files, in the order of their names and without the writer's user."""
    here = Path(__file__).parent

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(here / f"{name}.tar.gz", "w:gz") as archive:
        for part in ("store", "store-wal"):
            archive.add(folder / part, arcname=part, filter=plain)
    shutil.copy(folder / "expected.json", here / f"{name}.json")


def write(folder: Path, redis_url: str) -> dict[str, Any]:
    """Fill `folder/store` part by part; returns what a reader has to be told: tokens and ids."""
    writer = Writer(f"file://{folder / 'store'}", redis_url)
    notes: dict[str, Any] = {"tokens": writer.access()}
    writer.features()
    notes["signer"] = writer.governed_model(folder / "files")
    writer.learnt_model()
    notes |= writer.runs(folder / "files", notes["tokens"]["ada"])
    writer.days_of_service()
    notes["invocations"] = writer.invocations()
    writer.undrained()
    shutil.rmtree(folder / "files")
    return notes


class Writer:
    """Writes the parts of the store, each by the names that a user or an application calls."""

    def __init__(self, url: str, redis_url: str) -> None:
        self.url, self.redis_url = url, redis_url
        self.store = open_store(url)
        self._random = np.random.default_rng(7)

    def at(self, moment: datetime, actor: str = "ada") -> Context:
        """The surroundings of a process of the platform at a moment."""
        clock = FixedClock(moment)
        return Context(
            self.store, self.url, self.redis_url, project="tests.compat.project", clock=clock, actor=actor
        )

    def access(self) -> dict[str, str]:
        """Two tokens that are live, one that was revoked."""
        access = Access(self.store, actor="root", clock=FixedClock(START))
        tokens = {name: access.create_token(name, role) for name, role in
                  (("ada", Role.operator), ("bob", Role.approver), ("eve", Role.viewer))}  # fmt: skip
        access.revoke("eve")
        return tokens

    def features(self) -> None:
        """Definitions, offline rows of a plain and of an aggregated view, and the table of what is asked about."""
        features = self.at(NOW).features()
        features.apply(project.FEATURES)
        days = (NOW - START) // DAY
        count = days * PER_DAY // 2
        at = [START + days * DAY * (i / count) for i in range(count)]
        x = self._random.normal(size=count)
        times = pa.array(at, pa.timestamp("us", "UTC"))
        names = [f"i{i}" for i in range(count)]
        kinds = np.where(np.arange(count) % 3 == 0, "a", "b")
        features.write_offline(
            "state", pa.table({"item": names, "x": np.round(x, 3), "kind": kinds, "event_timestamp": times})
        )
        late = self._random.random(count) < 1 / (1 + np.exp(-2 * x))
        known = pa.array([when + timedelta(hours=5) for when in at], pa.timestamp("us", "UTC"))
        rows = {"item": names, "event_timestamp": times, "late": late.astype(float), "label_known_at": known}
        self.items = Table(self.store, "items").append(pa.table(rows))
        spent = [{"shop": "ab"[i % 2], "spent": float(i), "event_timestamp": START + i * DAY / 2,
                  "known_at": START + i * DAY / 2} for i in range(20)]  # fmt: skip
        features.compute_offline("visits", spent)

    def governed_model(self, files: Path) -> str:
        """The model `price`: a signed policy, approvals, aliases, a rollback, an override, a split in a layer.

        Returns: the public key of its signer, PEM.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        registry = self.at(START).registry()
        registry.create_model("price", description="what a table costs", tags={"team": "pricing"})
        for number in range(1, 6):
            registry.create_version(
                "price", self._weight(files, number), signature=_signature(), metrics={"rmse": 1.0 / number},
                lineage=Lineage(code=f"code-{number}", datasets=[TableSnapshot(name="items", version=0)]),
                tags={"kind": "weighted"}, description=f"weight {number}", key=f"first-{number}",
            )  # fmt: skip
        policy = ModelPolicy(
            guarded=frozenset({"champion"}), approvals=1, gates=("offline",), signers=(public.decode(),)
        )
        registry.set_policy("price", policy)
        for number in (1, 2, 3):
            registry.sign_version("price", number, secret)
            registry.record_gate(
                "price", number, "offline", passed=True, details={"rmse": 0.5, "gap": float("nan")}
            )
            registry.as_actor("bob").approve("price", number, comment="as good as it looks")
        self._aliases_and_traffic()
        return public.decode()

    def _aliases_and_traffic(self) -> None:
        def registry(days: float) -> Any:
            return self.at(START + days * DAY).registry()

        registry(1).set_alias("price", "champion", 1, expected=None, reason="the first")
        registry(2).promote("price", 2, reason="better")
        registry(3).rollback("price", "champion", reason="not better after all")
        registry(4).set_alias("price", "champion", 2, expected=1, reason="it was the data")
        registry(5).set_alias("price", "candidate", 3)
        registry(5).record_gate("price", 4, "offline", passed=False, details={"rmse": 9.0})
        registry(5).as_actor("bob").reject("price", 4, comment="too dear")
        registry(5).delete_version("price", 5, reason="made by mistake")
        registry(6).begin_holdout("price", "quiet", 0.05, reason="to see what all of it brings")
        staff = TrafficRule(
            name="staff", when=(Condition(attribute="group", op="in", values=("staff",)),), to=1
        )
        registry(7).set_traffic(
            "price", {"canary": (3, 0.25)}, shadows=(1,), rules=(staff,),
            layer=LayerShare(name="checkout", share=0.4), reason="a quarter of two fifths",
        )  # fmt: skip

    def _weight(self, files: Path, number: int) -> Path:
        folder = files / f"price-{number}"
        folder.mkdir(parents=True)
        (folder / "python_model.json").write_text('{"scorer": "weighted"}')
        (folder / "weight.txt").write_text(str(number / 2))
        return folder

    def learnt_model(self) -> None:
        """The model `late`: two versions of the tabular network, trained on features of the store, one live."""
        with use_context(self.at(SERVED_FROM, actor="trainer")) as used:
            rows = build_training_set("late", self.items, "late", START, SERVED_FROM, name="training/first")
            used.registry().create_model("late", policy=LATE.governance)
            for epochs in (1, 3):
                train_tabular(
                    "late", rows, "late", ["x"], ["kind"],
                    LATE.training.model_copy(update={"epochs": epochs}), feature_service="late",
                    features=used.features().definitions_digest("late"), datasets=[self.items],
                )  # fmt: skip
            for version in (1, 2):
                used.registry().record_gate("late", version, "offline", passed=True, details={"rows": 40})
                used.registry().as_actor("bob").approve("late", version)
            used.registry().set_alias("late", "champion", 1)

    def runs(self, files: Path, token: str) -> dict[str, Any]:
        """An experiment with a run that ended, one that failed and one whose process is gone; and MLflow's door."""
        registry = self.at(SERVED_FROM).registry()
        registry.create_experiment("ovens", title="Ovens and their heat", tags={"team": "bakery"})
        note = files / "note.txt"
        note.write_text("a golden crust")
        with registry.start_run("ovens", name="slow", params={"heat": 180}, tags={"bread": "rye"}) as run:
            for step in range(3):
                run.log_metrics({"loss": 1.0 / (step + 1), "worst": float("inf")}, step=step)
            run.log_artifact(note, to="notes")
        try:
            with registry.start_run("ovens", name="burnt", params={"heat": 300}, parent=run.id):
                raise ValueError("smoke")  # noqa: TRY301 - a run fails like this
        except ValueError:
            pass
        return {"gone": self._run_that_vanishes(), "mlflow": asyncio.run(self._through_mlflow(token))}

    def _run_that_vanishes(self) -> str:
        """A run whose process is gone, and whose last heartbeat is long ago."""
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            run_id = pool.submit(_begin_a_run, self.url).result()
        self.store.put(f"runs/{run_id}/heartbeat", to_text(SERVED_FROM).encode())
        return run_id

    async def _through_mlflow(self, token: str) -> dict[str, str]:
        door = Starlette(routes=[Mount("/api", build_app(self.store))])
        headers = {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app=door)
        async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as client:

            async def post(path: str, **body: Any) -> Any:
                answer = await client.post(f"/api/2.0/mlflow/{path}", json=body)
                return answer.raise_for_status().json()

            experiment = (await post("experiments/create", name="by mlflow"))["experiment_id"]
            run = (await post("runs/create", experiment_id=experiment, run_name="from outside"))["run"][
                "info"
            ]["run_id"]
            metrics = [{"key": "loss", "value": 0.5 - step / 10, "timestamp": 1_356_998_400_000, "step": step}
                       for step in range(3)]  # fmt: skip
            await post("runs/log-batch", run_id=run, metrics=metrics, params=[{"key": "lr", "value": "0.01"}],
                       tags=[{"key": "who", "value": "ada"}])  # fmt: skip
            model = (await post("logged-models", experiment_id=experiment, name="net", source_run_id=run,
                                params=[{"key": "depth", "value": "2"}]))["model"]["info"]["model_id"]  # fmt: skip
            status = {"status": "LOGGED_MODEL_READY"}
            (await client.patch(f"/api/2.0/mlflow/logged-models/{model}", json=status)).raise_for_status()
            await post("runs/update", run_id=run, status="FINISHED", end_time=1_356_998_500_000)
        return {"experiment": experiment, "run": run, "model": model}

    def days_of_service(self) -> None:
        """Twelve days of predictions and labels; a rollout that ended and one that is open; alarms; retraining."""
        with use_context(self.at(SERVED_FROM)) as used:
            run_events(used)  # the subscriptions begin here
            set_quota("bakery", cpus=8.0, at_once=2, members=["ada"])
            record_metric("tips", [MetricValue(prediction_id="0-0", value=2.5, observed_at=SERVED_FROM)])
            start_rollout("late", 2, LATE.rollout, reason="it learnt longer")
        day = SERVED_FROM
        while day < NOW:
            self._serve(day)
            day += DAY
            with use_context(self.at(day)):
                self._tend(day)

    def _tend(self, day: datetime) -> None:
        """What the platform does at the end of a day: the rollout's tick, the monitors, and what people do."""
        tick_rollout("late")
        watch_quality("late", QUALITY)
        watch_performance("late", PERFORMANCE)
        watch_drift("late", DRIFT, QUALITY)
        if day == SERVED_FROM + 4 * DAY:
            pause_rollout("late", "a holiday")
        if day == SERVED_FROM + 5 * DAY:
            resume_rollout("late", "back again")
        if day == SERVED_FROM + 7 * DAY:
            end_rollout("late", "roll_back", "the shop closes")
        if day == NOW - 2 * DAY:
            request_retrain("late", "the season changes")
            silence_alerts("late", "drift/features", 48.0, "it is known")

    def _serve(self, day: datetime) -> None:
        """Log a day: the champion answers, shadows see it; on the last days a column is missing and the truth turns."""
        traffic = self.at(day).registry().traffic("late")
        turned, broken = day >= NOW - 5 * DAY, day >= NOW - 2 * DAY
        x = self._random.normal(2.0 if turned else 0.0, 1.0, PER_DAY)
        true = self._random.random(PER_DAY) < 1 / (1 + np.exp((3 if turned else -2) * x))
        number = (day - SERVED_FROM) // DAY
        answers, labels = [], []
        for i in range(PER_DAY):
            at, name = day + DAY * (i + 0.5) / PER_DAY, f"{number}-{i}"
            arm = traffic.assign(name)
            shown = float("nan") if broken else x[i]
            for version, arm_name, shadow in (
                (arm.version, arm.name, False), *((v, "shadow", True) for v in traffic.shadows)
            ):  # fmt: skip
                answers.append(_prediction(name, version, arm_name, at, shown, x[i], shadow=shadow))
            if i % 12:
                seen = at + timedelta(hours=5)
                labels.append(Label(name, float(true[i]), seen, seen))
        self._log("predictions", answers)
        self._log("labels", [encode_labels(labels)])
        drain(self.store, self.redis_url)

    def _log(self, kind: str, records: list[bytes], *, redis_url: str | None = None) -> None:
        log = LogWriter(default_wal_root(self.url), kind, redis_url or self.redis_url, poll_s=0.01)
        for each in records:
            log.append(each)
        log.close(timeout_s=0.1 if redis_url else 5)

    def undrained(self) -> None:
        """Records that a process wrote to its files and that nobody has drained: it was killed while Redis was away."""
        away = "redis://127.0.0.1:1/0"
        at = NOW + timedelta(hours=1)
        self._log("predictions", [_prediction(f"late-{i}", 1, "champion", at, 0.5, 0.5, shadow=False)
                                  for i in range(5)], redis_url=away)  # fmt: skip
        self._log("labels", [encode_labels([Label("late-0", 1.0, at, at)])], redis_url=away)

    def invocations(self) -> dict[str, str]:
        """Durable invocations in every state, events, a schedule that fired, and a result that is kept.

        Returns: the id of each by what became of it.
        """
        with use_context(self.at(NOW)) as used:
            schedules = reading.schedules()
            run_due(used, now=NOW, schedules=schedules)
            run_due(used, now=NOW + DAY, schedules=schedules)
            publish("harvest", {"fruit": "pear", "count": 3}, key="pears")
            run_events(used)
            found = self._ended() | self._under_way(used)
            executor_of(used).close()
            return found | self._waiting()

    def _ended(self) -> dict[str, str]:
        square = tasks.square.submit(12, key="twelve")
        done: dict[str, Invocation[Any]] = {
            "doubled": tasks.double.submit(21, key="answer"),
            "weighed": tasks.weigh.submit(tasks.Basket(fruit="plum", count=8)),
            "kept": square,
            "alone": tasks.one_at_a_time.submit(1),
        }
        for each in done.values():
            each.result(timeout_s=240)
        dead = tasks.refuse.submit("there is no bread", key="bread")
        dead.wait(timeout_s=240)
        gone = tasks.double.submit(1, key="cancelled")
        gone.cancel()
        return {name: each.id for name, each in {**done, "dead": dead, "cancelled": gone}.items()}

    def _under_way(self, used: Context) -> dict[str, str]:
        """Invocations that have begun: failed once, waiting for an event, asleep, and with a worker that was killed."""
        Path(HOLD).touch()
        begun: dict[str, Invocation[Any]] = {
            "failed": tasks.refuse_twice.submit("no butter either", key="butter"),
            "awaiting": tasks.await_order.submit("carl", key="order"),
            "asleep": tasks.count_twice.submit(5, key="asleep"),
            "killed": tasks.count_and_hold.submit(4, HOLD, key="killed"),
        }
        _until(lambda: run_pending(used) and begun["failed"].status() == "failed")
        _until(lambda: run_pending(used) and begun["awaiting"].record().waits_for)
        _until(lambda: run_pending(used) and len(begun["asleep"].record().steps) == 2)
        _until(lambda: run_pending(used) and len(begun["killed"].record().steps) == 1)
        executor_of(used).close()
        Path(HOLD).unlink()
        return {name: each.id for name, each in begun.items()}

    def _waiting(self) -> dict[str, str]:
        """Invocations that were accepted and that nobody has begun, of functions of the platform and of the project."""
        standing = alarms("late").standing()[0]
        waiting: dict[str, Invocation[Any]] = {
            "tidying": tidy_registry.submit(),
            "building": build_training_set.submit(
                "late", self.items, "late", START, START + 5 * DAY, name="training/next"
            ),
            "retraining": retrain.submit(standing),
            "doubling": tasks.double.submit(8),
        }
        return {name: each.id for name, each in waiting.items()}


def _begin_a_run(url: str) -> str:
    registry = Registry(open_store(url), actor="ada", clock=FixedClock(SERVED_FROM))
    run = registry.start_run("ovens", name="gone", params={"heat": 200})
    run.log_metrics({"loss": 0.75})
    run.flush()
    return run.id


def _signature() -> Signature:
    return Signature(
        inputs=[TensorSpec(name="numeric", datatype="FP32", shape=[-1, 2], columns=["seats", "hours"])],
        outputs=[TensorSpec(name="price", datatype="FP32", shape=[-1, 1])],
    )


def _prediction(
    name: str, version: int, arm: str, at: datetime, shown: float, x: float, *, shadow: bool
) -> bytes:
    probability = 1 / (1 + np.exp(-2 * x / version))
    return encode_prediction(
        id=name, model="late", version=version, arm=arm, shadow=shadow, unit=name, at_us=micros(at),
        latency_ms=4.0, rows=1, numeric=np.array([[shown]], np.float32), categorical=[["a" if x > 0 else "b"]],
        outputs=np.array([[probability]], np.float32), missing=[["x"] if np.isnan(shown) else []],
        entities=[{"item": name}],
    )  # fmt: skip


def _until(holds: Callable[[], object], *, within_s: float = 240) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {within_s} s")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
