"""Reads and writes `up.json` in the state folder, which records the platform that was started there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from toque.ray_apps.local.processes import ProcessSession
from toque.ray_apps.local.settings import Ports, Settings
from toque.ray_apps.model_paths import models_path, split_name

FILE = "up.json"


class RunningPlatform(BaseModel):
    """A platform that was started: its settings, ports, process sessions, and how long each part took to start.

    models: those of all projects, as `churn` in the default workspace and `payments/churn` in another; streams: whether consumers of
    streams were started; code: digest of each file of the projects when it was started, empty where none was recorded;
    boot: id of the machine's boot in which it was started; run_folder: folder with a short path, for sockets; ready:
    false while the platform is starting; timings_s: seconds from the start until each part was ready.
    """

    model_config = ConfigDict(frozen=True)

    settings: Settings
    boot: str
    ports: Ports
    redis_url: str
    run_folder: Path
    sessions: dict[str, ProcessSession] = {}
    models: tuple[str, ...] = ()
    streams: bool = False
    code: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    timings_s: dict[str, float] = {}
    ready: bool = False

    @property
    def ray_folder(self) -> Path:
        """Folder of Ray's sessions, which Ray opens to every user; it lies in one that only this user can enter."""
        return self.run_folder / "r"

    @property
    def url(self) -> str:
        """URL of the platform's HTTP API."""
        return f"http://{self.settings.host}:{self.ports.http}"

    @property
    def grpc_address(self) -> str:
        """Address at which the models answer by gRPC."""
        return f"{self.settings.host}:{self.ports.grpc}"

    def model_url(self, name: str) -> str:
        """URL of one of `models`."""
        workspace, model = split_name(name)
        return f"{self.url}{models_path(workspace)}/{model}"

    @property
    def jobs_url(self) -> str:
        """URL of the job endpoint, for `ray job submit`."""
        return f"http://{self.settings.host}:{self.ports.jobs}"

    @property
    def ray_address(self) -> str:
        """Address of the Ray head, for `ray.init`."""
        return f"{self.settings.host}:{self.ports.gcs}"

    def token(self) -> str:
        """Read the administrator's bearer token from its file."""
        return self.settings.token_file.read_text().strip()

    def environment(self) -> dict[str, str]:
        """List the variables of a client of this platform: addresses, store, and paths of secrets."""
        given = {
            "TOQUE_HOME": str(self.settings.home),
            "TOQUE_STORE": self.settings.store_url,
            "TOQUE_AUDIT_KEY_FILE": str(self.settings.audit_key_file),
            "TOQUE_REDIS_URL": self.redis_url,
            "TOQUE_CLOCK": self.settings.clock,
            "TOQUE_PROJECT": self.settings.project or "",
            "TOQUE_OIDC": self.settings.oidc.model_dump_json() if self.settings.oidc else "",
            "TOQUE_URL": self.url,
            "RAY_ADDRESS": self.ray_address,
            "RAY_API_SERVER_ADDRESS": self.jobs_url,
        }
        given |= self.settings.ray_login()
        return {name: value for name, value in given.items() if value}

    def client_environment(self) -> dict[str, str]:
        """Add the administrator's token to `environment`, for a person's own shell."""
        return self.environment() | {"TOQUE_TOKEN": self.token()}

    def save(self) -> RunningPlatform:
        """Write the state file atomically, readable by this user only; returns this platform."""
        write_private(self.settings.home / FILE, self.model_dump_json(indent=1))
        return self


def find_platform(home: Path) -> RunningPlatform | None:
    """Read the platform that was last started in `home`, whether or not it still runs."""
    try:
        text = (home / FILE).read_text()
    except FileNotFoundError:
        return None
    return RunningPlatform.model_validate(json.loads(text))


def delete_state_file(home: Path) -> None:
    """Delete the state file, if there is one."""
    (home / FILE).unlink(missing_ok=True)


def boot_id() -> str:
    """Read the id of the machine's current boot: pids of an earlier boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, replacing an earlier one atomically."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
