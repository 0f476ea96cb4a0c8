"""PostgreSQL of its own for tests: a cluster in a temporary folder that can be killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc

from tests.ports import free_port

_PATIENCE_S = 60.0


def postgres_folder() -> Path | None:
    """Folder of the server's programs, or None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


class PostgresServer:
    """A server that listens on loopback; run by an unprivileged user, because it refuses root."""

    def __init__(self, programs: Path) -> None:
        self._programs, self.port = programs, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = None if os.geteuid() else "nobody"
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self.url = f"postgresql://tests@127.0.0.1:{self.port}/postgres"
        self.process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "tests", "--auth=trust", "--no-sync")

    def start(self) -> None:
        data = str(self.folder / "data")
        options = ("-k", str(self.folder), "-p", str(self.port), "-c", "listen_addresses=127.0.0.1")
        command = [str(self._programs / "postgres"), "-D", data, *options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, user=self._user, cwd="/", env={"LC_ALL": "C"}, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _PATIENCE_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill the server as a power cut would: no session ends, and nothing is flushed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def execute(self, *statements: str) -> None:
        with self.connect() as connection, connection.cursor() as cursor:
            for each in statements:
                cursor.execute(each)
            connection.commit()

    def connect(self) -> Any:
        return adbc.connect(self.url)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except adbc.Error:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(
            command, user=self._user, cwd="/", env={"LC_ALL": "C"}, check=True, capture_output=True
        )
