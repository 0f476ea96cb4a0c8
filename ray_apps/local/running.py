"""What is running, as `up.json` in the state folder tells it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ray_apps.local.processes import Session
from ray_apps.local.settings import Ports, Settings

FILE = "up.json"


class Running(BaseModel):
    """A platform that was started: its settings, doors, sessions and how long each part took to start.

    boot: the machine's boot it belongs to; run_folder: short-named folder for sockets; ready: false while it is
    still starting; timings_s: seconds from the beginning until each part was there.
    """

    model_config = ConfigDict(frozen=True)

    settings: Settings
    boot: str
    ports: Ports
    redis_url: str
    run_folder: Path
    sessions: dict[str, Session] = {}
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timings_s: dict[str, float] = {}
    ready: bool = False

    @property
    def url(self) -> str:
        """The platform's HTTP door."""
        return f"http://{self.settings.host}:{self.ports.http}"

    @property
    def grpc_address(self) -> str:
        """Where the models answer by gRPC."""
        return f"{self.settings.host}:{self.ports.grpc}"

    @property
    def jobs_url(self) -> str:
        """The address for `ray job submit`."""
        return f"http://{self.settings.host}:{self.ports.jobs}"

    @property
    def ray_address(self) -> str:
        """The address for `ray.init`."""
        return f"{self.settings.host}:{self.ports.gcs}"

    def token(self) -> str:
        """The administrator's bearer token."""
        return self.settings.token_file.read_text().strip()

    def environment(self) -> dict[str, str]:
        """What a client of this platform needs in its environment: doors, store, and where secrets are."""
        given = {
            "TOQUE_HOME": str(self.settings.home),
            "TOQUE_STORE": self.settings.store_url,
            "TOQUE_REDIS_URL": self.redis_url,
            "TOQUE_CLOCK": self.settings.clock,
            "TOQUE_PROJECT": self.settings.project or "",
            "TOQUE_URL": self.url,
            "RAY_ADDRESS": self.ray_address,
            "RAY_API_SERVER_ADDRESS": self.jobs_url,
        } | self.settings.ray_login()
        return {name: value for name, value in given.items() if value}

    def client_environment(self) -> dict[str, str]:
        """`environment` with the administrator's token, for a person's own shell."""
        return self.environment() | {"TOQUE_TOKEN": self.token()}

    def save(self) -> Running:
        """Write it, readable by this user only; whole or not at all. Returns itself."""
        write_private(self.settings.home / FILE, self.model_dump_json(indent=1))
        return self


def find(home: Path) -> Running | None:
    """What was last recorded in `home`, whether or not it still runs."""
    try:
        text = (home / FILE).read_text()
    except FileNotFoundError:
        return None
    return Running.model_validate(json.loads(text))


def forget(home: Path) -> None:
    """Remove the record."""
    (home / FILE).unlink(missing_ok=True)


def boot_id() -> str:
    """Names this boot of the machine: process numbers mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def write_private(path: Path, text: str) -> None:
    """Replace a file with mode 0600, atomically."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
