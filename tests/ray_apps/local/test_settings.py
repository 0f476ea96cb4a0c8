import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import ValidationError

from toque.ray_apps.local import ray_head
from toque.ray_apps.local.lifecycle import run_folder
from toque.ray_apps.local.settings import CLUSTER_FILE, Ports, Settings
from toque.ray_apps.local.state_file import RunningPlatform, boot_id, delete_state_file, find_platform
from toque.ray_apps.oidc import OidcSettings


def made(home: Path) -> RunningPlatform:
    home.mkdir(exist_ok=True)
    settings = Settings(home=home, project="examples.flights", clock="replay")
    settings.token_file.write_text("tq_secret")
    return RunningPlatform(
        settings=settings,
        boot=boot_id(),
        ports=Ports(),
        redis_url="redis://:p@h:1/0",
        run_folder=run_folder(home),
    )


def test_arguments_override_the_environment_which_overrides_defaults(tmp_path: Path) -> None:
    environment = {"TOQUE_HOME": str(tmp_path), "TOQUE_PROJECT": "one", "TOQUE_CLOCK": "replay"}
    settings = Settings.of(environment, project="two", clock=None)
    assert (settings.project, settings.clock, settings.home) == ("two", "replay", tmp_path.resolve())
    assert settings.store_url == f"file://{tmp_path.resolve()}/store"


def test_the_environment_and_arguments_override_the_cluster_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    chosen = "{clock: replay, start_timeout_s: 5, ports: {http: 8123, jobs: 8124}}"
    file.write_text(f"cluster_name: c\nmetadata: {{toque: {chosen}}}\n")
    settings = Settings.of({"TOQUE_CLUSTER": str(file), "TOQUE_CLOCK": "system"}, ports={"jobs": 9000})
    assert (settings.clock, settings.start_timeout_s) == ("system", 5)
    assert (settings.ports.http, settings.ports.jobs, settings.ports.redis) == (8123, 9000, Ports().redis)


def test_ports_of_the_environment_are_between_those_of_the_file_and_of_arguments(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("metadata: {toque: {ports: {http: 8123, grpc: 8124}}}\n")
    environment = {"TOQUE_CLUSTER": str(file), "TOQUE_HTTP_PORT": "9001", "TOQUE_GRPC_PORT": ""}
    ports = Settings.of(environment).ports
    assert (ports.http, ports.grpc, ports.redis) == (9001, 8124, Ports().redis)
    assert Settings.of(environment, ports={"http": 9002}).ports.http == 9002
    for wrong in ("many", "0", "65536", "-1"):
        with pytest.raises(ValidationError, match=r"ports\.http"):
            Settings.of({**environment, "TOQUE_HTTP_PORT": wrong})


def test_the_cluster_file_of_the_repository_is_valid() -> None:
    assert CLUSTER_FILE.exists()
    assert Settings.of({}).ports == Ports()


def test_an_unknown_key_of_the_cluster_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("metadata: {toque: {colour: red}}\n")
    with pytest.raises(ValidationError, match="colour"):
        Settings.of({"TOQUE_CLUSTER": str(tmp_path / "cluster.yaml")})


def test_an_unknown_clock_is_refused() -> None:
    with pytest.raises(ValidationError, match="clock"):
        Settings.of({"TOQUE_CLOCK": "sundial"})


def test_the_state_file_is_private_and_read_back(tmp_path: Path) -> None:
    running = made(tmp_path).save()
    assert find_platform(tmp_path) == running
    assert (tmp_path / "up.json").stat().st_mode & 0o077 == 0
    delete_state_file(tmp_path)
    delete_state_file(tmp_path)
    assert find_platform(tmp_path) is None


def test_processes_get_the_variables_of_their_platform_only(tmp_path: Path) -> None:
    inherited = {
        "PATH": "/bin",
        "TOQUE_STORE": "s3://other",
        "RAY_ADDRESS": "elsewhere",
        "TOQUE_TOKEN": "tq_other",
        "TOQUE_AUDIT_KEY": "ab" * 32,
        "TOQUE_AUDIT_HEADS": "s3://heads",
        "TOQUE_PRICES": '{"currency": "EUR"}',
        "TOQUE_POOL_MEMORY_GB": "2",
    }
    environment = ray_head.environment(made(tmp_path), inherited)
    assert environment["TOQUE_STORE"] == f"file://{tmp_path}/store"
    assert environment["TOQUE_AUDIT_KEY_FILE"] == f"{tmp_path}/keys/audit"
    assert environment["TOQUE_AUDIT_HEADS"] == "s3://heads"
    assert environment["TOQUE_PRICES"] == '{"currency": "EUR"}'  # budgets in money are judged by them
    assert environment["TOQUE_POOL_MEMORY_GB"] == "2"
    assert "TOQUE_AUDIT_KEY" not in environment
    assert environment["TOQUE_CLOCK"] == "replay"
    assert environment["TOQUE_PROJECT"] == "examples.flights"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["RAY_ADDRESS"] == "127.0.0.1:6399"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"  # a job runs with this `python`
    assert "TOQUE_TOKEN" not in environment  # functions do not act as the administrator
    assert str(ray_head.ROOT) in environment["PYTHONPATH"].split(":")


def test_the_issuer_reaches_every_process_also_when_it_is_named_by_a_file(tmp_path: Path) -> None:
    grant = {"claim": "groups", "value": "ml", "grant": "operator:payments"}
    given = json.dumps({"issuer": "https://login.example", "audience": "toque", "grants": [grant]})
    (tmp_path / "oidc.json").write_text(given)
    settings = Settings.of({"TOQUE_OIDC": f"{tmp_path}/oidc.json", "TOQUE_HOME": str(tmp_path)})
    made(tmp_path).model_copy(update={"settings": settings}).save()
    running = find_platform(tmp_path)
    assert running is not None
    environment = ray_head.environment(running, {})
    assert OidcSettings.from_environment(environment) == OidcSettings.parse(given)


def test_a_client_gets_the_token(tmp_path: Path) -> None:
    assert made(tmp_path).client_environment()["TOQUE_TOKEN"] == "tq_secret"


def test_sockets_have_short_paths_however_deep_the_state_folder_is(tmp_path: Path) -> None:
    node, socket = "n" * 56, "m.sock.12345.tmp"
    path = run_folder(tmp_path / ("deep/" * 40)) / "ha" / node / socket
    assert len(str(path)) <= 107


def test_everything_ray_starts_is_bound_to_loopback(tmp_path: Path) -> None:
    command = ray_head.command(made(tmp_path))
    assert "--node-ip-address=127.0.0.1" in command
    assert "--include-dashboard=false" in command


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("localhost", True), ("10.0.0.7", False)])
def test_ray_is_told_that_no_other_machine_joins_where_only_this_one_is_served(
    tmp_path: Path,
    host: str,
    alone: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    running = made(tmp_path)
    environment = running.model_copy(
        update={"settings": running.settings.model_copy(update={"host": host})}
    ).environment()
    assert (environment.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0") is alone
    assert (environment.get("TOQUE_ONE_MACHINE") == "1") is alone


def test_the_http_middlewares_that_serve_is_given_can_be_imported(tmp_path: Path) -> None:
    name = ray_head.environment(made(tmp_path), {})["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    module, _, function = name.rpartition(".")
    assert callable(getattr(import_module(module), function))


UP = """
import os, sys
import toque.ray_apps.local
from toque.ray_apps.cli.main import main

class Watch:
    seen = []

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "ray":
            cls.seen.append([os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")])

def up(settings, report):
    import ray
    assert Watch.seen == [["token", "0"]], Watch.seen
    raise SystemExit(0)

assert "ray" not in sys.modules
sys.meta_path.insert(0, Watch)
toque.ray_apps.local.up = up
main(["--home", sys.argv[1], "up", "--project", "examples.flights"])
"""


def test_up_sets_the_variables_that_ray_reads_before_anything_imports_it(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", UP, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
