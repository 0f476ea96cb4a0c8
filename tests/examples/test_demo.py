"""The demo in small: four days of flights. A replica and Redis are killed on the way; then one answer is followed back."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from examples.flights.features import STORED, timetable
from examples.flights.model import delay_model
from tests.examples.console_scene import on_the_demo, set_scene, tokens
from tests.ray_apps.console.browser import LOOKS, Person, needs_chromium
from tests.ray_apps.console.tasks import MOST_CLICKS, TASKS
from toque.featurestore import FeatureStore
from toque.functions.features.jobs import training_set_lineage
from toque.functions.prediction_log import predictions_table
from toque.functions.reporting import trace_prediction
from toque.functions.rollout import rollout_status
from toque.functions.runtime.context import Context, use_context
from toque.functions.training import train_tabular
from toque.ray_apps.local import down, processes
from toque.ray_apps.local.state_file import find_platform
from toque.registry import Access, Registry, Table, open_store

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
REQUESTS = 400


@dataclass(frozen=True)
class Shown:
    """A demo that ended."""

    home: Path
    output: str

    @property
    def url(self) -> str:
        return f"file://{self.home}/store"


def until(what: Callable[[], object], demo: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not what():
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def pids(home: Path, name: str) -> set[int]:
    running = find_platform(home)
    found = processes.of_platform(home, running.sessions.values()) if running else []
    return {each.pid for each in found if name in each.command}


def kill(home: Path, name: str, demo: subprocess.Popen[str]) -> None:
    """SIGKILL it and wait for its successor."""
    victims = pids(home, name)
    assert victims, f"no process {name!r}"
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):  # what it forked just then may be gone by now
            os.kill(victim, signal.SIGKILL)
    until(lambda: pids(home, name) - victims, demo)


def waiting_for_answers(home: Path) -> bool:
    """Whether a replica has logged a prediction."""
    return any(each.stat().st_size for each in (home / "store-wal").rglob("*") if each.is_file())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    home = tmp_path_factory.mktemp("demo") / "home"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))
    }
    command = [
        sys.executable,
        "-m",
        "toque.ray_apps.cli",
        "--home",
        str(home),
        "demo",
        "--project",
        "examples.flights",
    ]
    running = subprocess.Popen(
        [*command, "--", "--requests", str(REQUESTS), "--until", "2013-05-05"],
        cwd=Path(__file__).parents[2],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until(lambda: waiting_for_answers(home), running)
        kill(home, "ServeReplica:predictor", running)
        kill(home, "redis-server 127", running)
        output, _ = running.communicate(timeout=400)
        assert running.returncode == 0, output
        yield Shown(home, output)
    finally:
        running.kill()
        down(home)


def test_the_demo_ends_well_though_a_replica_and_redis_were_killed(demo: Shown) -> None:
    assert "no failure" in demo.output, demo.output
    assert f"{REQUESTS} predictions" in demo.output, demo.output
    assert "every answer is in the prediction log" in demo.output
    page = (demo.home / "reports" / "demo.html").read_text()
    assert "https://" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # of plotly's own code


def test_one_answer_leads_to_version_run_data_features_and_code(demo: Shown) -> None:
    store = open_store(demo.url)
    registry = Registry(store, actor="reader")
    answered = Table(store, predictions_table(delay_model.name)).read(where=~pc.field("shadow"))
    assert len(set(answered["prediction_id"].to_pylist())) == REQUESTS
    prediction = answered["prediction_id"][REQUESTS // 2].as_py()

    trace = trace_prediction(registry, delay_model.name, prediction)
    assert 0 < trace.outputs[0] < 1
    assert set(trace.features) == {*delay_model.numeric, *delay_model.categorical}
    assert trace.approved_by == ["ada: April is convincing"]
    assert trace.lineage.code == train_tabular.digest

    run = registry.get_run(str(trace.lineage.run)).record()
    assert run.status == "FINISHED"
    assert run.facts["code"] == train_tabular.digest

    with use_context(Context(store=store, store_url=demo.url)):
        (training,) = [each for each in trace.lineage.datasets if each.name.startswith("training/")]
        made_from = training_set_lineage(training)
    rows = Table(store, training.name).read(version=training.version, columns=[delay_model.label])
    assert rows.num_rows == made_from.rows > 10_000
    assert made_from.entities in trace.lineage.datasets
    assert {view.name for view in STORED} == set(made_from.tables)

    views = FeatureStore(store).definitions_digest(delay_model.service)
    assert trace.lineage.features == made_from.views == views
    assert {view.name for view in (*STORED, timetable)} == set(views)


@needs_chromium
@pytest.mark.proof
@pytest.mark.timeout(1_800)  # with the demo
def test_twelve_tasks_are_done_in_the_console_light_and_dark_wide_and_on_a_phone(
    demo: Shown, chromium: Any
) -> None:
    running = find_platform(demo.home)
    assert running is not None
    with on_the_demo(running) as used:
        for name, look in LOOKS.items():
            scene, token = set_scene(running, used, name), tokens(running, used, name)
            for role, task in TASKS:
                context = chromium.new_context(timezone_id="America/New_York", **look)
                visitor = Person(context.new_page(), running.url)
                visitor.sign_in(token[role])
                task(visitor, scene)
                assert visitor.clicks <= MOST_CLICKS, task.__name__
                assert not visitor.complaints, task.__name__
                assert not visitor.elsewhere
                context.close()
            assert used.registry().traffic(scene.model).arms[1].version == scene.waiting
            assert rollout_status(scene.model).outcomes[-1].stage == "rolled_back"
            (token_of,) = [
                each for each in Access(used.store, actor="t").list_tokens() if each.name == scene.token
            ]
            assert token_of.revoked_at is not None


def test_after_down_no_process_is_left(demo: Shown) -> None:
    running = find_platform(demo.home)
    assert running is not None
    down(demo.home)
    assert processes.of_platform(demo.home, running.sessions.values()) == []
