"""Up and down.

`up` starts Redis and Ray's head together, connects, deploys, opens the job door, and records each session the
moment it exists, so that `down` can end everything after a crash at any point.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ray_apps.local import deploying, jobs, processes, ray_head, redis_server
from ray_apps.local import running as record
from ray_apps.local.admin import admin_token
from ray_apps.local.errors import LocalError
from ray_apps.local.ports import choose
from ray_apps.local.processes import Session
from ray_apps.local.running import Running
from ray_apps.local.settings import Settings
from ray_apps.local.status import status

GRACE_S = 3.0
SHORT = 16  # characters of a temporary folder whose sockets still fit

Report = Callable[[str], None]


def up(settings: Settings, *, report: Report = lambda _: None) -> Running:
    """Start the platform, or return what already runs; a platform that is partly dead is started anew.

    report: told each step in a few words. This process stays connected to Ray, as a driver.
    Raises: PortTaken, StartFailed. On any error, and on Ctrl-C, everything started is ended again.
    """
    settings.home.mkdir(parents=True, exist_ok=True)
    with _alone(settings.home):
        there = record.find(settings.home)
        if there is not None and status(settings.home).healthy:
            deploying.connect(there)
            report("already up")
            return there
        _end(settings.home)
        try:
            with _in_turn():
                return _start(settings, report)
        except BaseException:
            report("ending what was started")
            _disconnect()
            _end(settings.home)
            raise


def down(home: Path, *, report: Report = lambda _: None) -> int:
    """End every process of the platform in `home`; nothing running is fine. Returns how many there were.

    Raises: LocalError naming processes that would not end.
    """
    home = home.expanduser().resolve()
    with _alone(home) if home.exists() else nullcontext():  # its processes may outlive a deleted folder
        _disconnect()
        return _end(home, report=report)


def _start(settings: Settings, report: Report) -> Running:
    begun = time.monotonic()
    running = _prepared(settings)
    # Ray reads how to authenticate when it is first imported, and the project's imports may bring it in.
    os.environ.update(ray_head.platform_environment(running) | ray_head.serve_environment(running))
    for note in running.notes:
        report(note)

    def done(part: str, running: Running, **changes: object) -> Running:
        timings = {**running.timings_s, part: round(time.monotonic() - begun, 2)}
        return running.model_copy(update={"timings_s": timings, **changes}).save()

    report("starting Ray and Redis")
    if settings.redis_url is None:
        running = _begun(running, "redis", redis_server.start(settings, running.ports.redis))
    running = _begun(running, "ray", ray_head.start(running, os.environ))
    with ThreadPoolExecutor(1) as beside:  # imports the user's project while the head starts
        models = beside.submit(deploying.models_of, settings.project)
        redis_server.wait(settings, running.redis_url)
        running = done("redis", running)
        admin_token(settings)
        ray_head.wait_ended(running)
        running = done("ray", running, models=models.result())
    cluster_id = deploying.connect(running)
    running = done("connected", _begun(running, "jobs", jobs.start(running, cluster_id=cluster_id)))
    report(f"deploying gateway, ticker and {len(running.models)} model(s)")
    deploying.deploy(running)
    running = done("serve", running)
    jobs.wait(running)
    return done("ready", running, ready=True)


def _prepared(settings: Settings) -> Running:
    """Ports, folders and secrets; nothing runs yet."""
    ports, moved = choose(settings.ports, host=settings.host, fixed=settings.fixed_ports)
    if not settings.ray_token_file.exists():
        record.write_private(settings.ray_token_file, secrets.token_hex(32))
    running = Running(
        settings=settings,
        boot=record.boot_id(),
        ports=ports,
        redis_url=settings.redis_url or redis_server.url(settings, ports.redis),
        run_folder=_fresh(run_folder(settings.home)),
        notes=tuple(map(str, moved)),
    )
    return running.save()


def _begun(running: Running, part: str, session: Session) -> Running:
    return running.model_copy(update={"sessions": {**running.sessions, part: session}}).save()


def run_folder(home: Path) -> Path:
    """Where sockets of the platform in `home` are.

    A short name: HAProxy takes 97 bytes for a socket's path, and Serve puts a node's id of 56 into it.
    """
    digest = hashlib.sha256(f"{os.getuid()} {home}".encode()).hexdigest()[:8]
    temporary = Path(tempfile.gettempdir())
    short = temporary if len(str(temporary)) <= SHORT else Path("/tmp")  # noqa: S108  # see above
    return short / f"toque-{digest}"


def _fresh(folder: Path) -> Path:
    """An empty folder that is ours alone. Raises: LocalError if someone else made it."""
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise LocalError(f"{folder} belongs to someone else; remove it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _end(home: Path, *, report: Report = lambda _: None) -> int:
    there = record.find(home)
    recorded = there.sessions if there is not None and there.boot == record.boot_id() else {}
    found = processes.of_platform(home, recorded.values())
    if found:
        report(f"ending {len(found)} processes")
    redis = {name: session for name, session in recorded.items() if name == "redis"}
    others = [session for name, session in recorded.items() if name not in redis]
    keep = {session.leader for session in redis.values()}
    processes.end(home, others, grace_s=GRACE_S, keep=keep)  # Redis last: what ends may still write to it
    left = processes.end(home, [*redis.values(), *others], grace_s=GRACE_S)
    if left:
        told = "; ".join(f"{each.pid} {each.command[:60]}" for each in left)
        raise LocalError(f"these processes would not end: {told}")
    record.forget(home)
    return len(found)


def _disconnect() -> None:
    import sys

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@contextmanager
def _in_turn() -> Iterator[None]:
    """A user's platforms start one after another: a port that one has chosen is not bound yet when the next looks."""
    with (Path(tempfile.gettempdir()) / f"toque-{os.getuid()}.starting").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one `up` or `down` at a time works on a state folder."""
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
