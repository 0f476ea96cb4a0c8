"""Starts and ends the platform of a state folder.

`up` starts Redis and Ray's head together, connects, deploys, starts the job endpoint, and records each process session
as soon as it exists, so that `down` can end everything after a crash at any point.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from toque.ray_apps.deployment.applications import follows_streams
from toque.ray_apps.local import deploying, jobs, processes, ray_head, redis_server, state_file
from toque.ray_apps.local.admin import admin_token, create_workspaces
from toque.ray_apps.local.audit_key import make_audit_key
from toque.ray_apps.local.errors import LocalError
from toque.ray_apps.local.ports import choose_ports
from toque.ray_apps.local.processes import ProcessSession
from toque.ray_apps.local.project_code import changed_files, code_of
from toque.ray_apps.local.settings import Settings
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.local.status import status
from toque.registry.store import temporary_folder

GRACE_S = 3.0
_NAMED = 5  # files that a note names
SHORT = 16  # longest path of a temporary folder, in characters, that leaves room for its sockets' paths

Report = Callable[[str], None]


def up(settings: Settings, *, report: Report = lambda _: None) -> RunningPlatform:
    """Start the platform, or return the one that runs, with the models that were declared since; one with dead parts is started anew.

    One that runs keeps the code that it was started with, and says so if the projects' files are others by now.

    report: called with each step in a few words. This process stays connected to Ray, as a driver.
    Raises: PortTaken, StartFailed; LocalError if one runs with other settings than are given. On any error, and on Ctrl-C, everything started is ended again.
    """
    _close(settings.home)
    with _locked(settings.home):
        recorded = state_file.find_platform(settings.home)
        if recorded is not None and status(settings.home).healthy:
            _check_as_started(recorded, settings)
            _report_older_code(recorded, report)
            deploying.connect(recorded)
            return _with_new_models(recorded, report)
        _end(settings.home)
        try:
            with _one_at_a_time():
                return _start(settings, report)
        except BaseException:
            report("ending what was started")
            _disconnect()
            _end(settings.home)
            raise


def down(home: Path, *, report: Report = lambda _: None) -> int:
    """End every process of the platform in `home`, and return how many there were (0 is no error).

    Raises: LocalError naming processes that would not end.
    """
    home = home.expanduser().resolve()
    with _locked(home) if home.exists() else nullcontext():  # its processes may outlive a deleted folder
        _disconnect()
        ended = _end(home, report=report)
    _sweep_weights()
    return ended


def _report_older_code(recorded: RunningPlatform, report: Report) -> None:
    """Say that the platform runs code that is no longer what lies there: its processes have imported it."""
    changed = changed_files(recorded.code, code_of(recorded.settings.project)) if recorded.code else []
    if changed:
        names = ", ".join(Path(path).name for path in changed[:_NAMED])
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        report(
            f"it runs the code of when it was started, and not what changed since: {names}{more}; "
            "`toque down` and `toque up` run what is there"
        )


def _with_new_models(recorded: RunningPlatform, report: Report) -> RunningPlatform:
    """Deploy the models that the projects declare by now and did not at the start; the others are left alone."""
    models = deploying.models_of(recorded.settings.project)
    added = [name for name in models if name not in recorded.models]
    if not added:
        report("already up")
        return recorded
    report(f"adding {', '.join(added)}")
    running = recorded.model_copy(update={"models": (*recorded.models, *added)})
    deploying.deploy_models(running, added)
    return running.save()


def _check_as_started(running: RunningPlatform, wanted: Settings) -> None:
    kept = running.settings.model_copy(update={"redis_url": running.redis_url})
    given = (
        wanted.model_fields_set - {"home", "ports"} - ({"redis_url"} if wanted.redis_url is None else set())
    )
    other = [name for name in sorted(given) if getattr(wanted, name) != getattr(kept, name)]
    if other:
        raise LocalError(
            f"{', '.join(other)}: the platform in {wanted.home} runs with other values; end it first "
            "(`toque down`), or give another folder (`toque --home`)"
        )


def _start(settings: Settings, report: Report) -> RunningPlatform:
    begun = time.monotonic()
    running = _prepare(settings)
    # Ray reads how to authenticate when it is first imported, and the project's imports may bring it in.
    os.environ.update(ray_head.platform_environment(running) | ray_head.serve_environment(running))
    for note in running.notes:
        report(note)

    def record_timing(part: str, running: RunningPlatform, **changes: object) -> RunningPlatform:
        timings = {**running.timings_s, part: round(time.monotonic() - begun, 2)}
        return running.model_copy(update={"timings_s": timings, **changes}).save()

    report("starting Ray and Redis")
    if settings.redis_url is None:
        running = _with_session(running, "redis", redis_server.start(settings, running.ports.redis))
    running = _with_session(running, "ray", ray_head.start(running, os.environ))
    with ThreadPoolExecutor(1) as executor:  # imports the user's project while the head starts
        models = executor.submit(deploying.models_of, settings.project)
        redis_server.wait(settings, running.redis_url)
        running = record_timing("redis", running)
        admin_token(settings)
        for name in create_workspaces(settings):
            report(f"created workspace {name}")
        ray_head.wait_ended(running)
        running = record_timing(
            "ray", running, models=models.result(), streams=follows_streams(settings.project)
        )
    cluster_id = deploying.connect(running)
    running = record_timing(
        "connected", _with_session(running, "jobs", jobs.start(running, cluster_id=cluster_id))
    )
    report(f"deploying gateway, ticker and {len(running.models)} model(s)")
    deploying.deploy(running)
    running = record_timing("serve", running)
    jobs.wait(running)
    return record_timing("ready", running, ready=True)


def _prepare(settings: Settings) -> RunningPlatform:
    """Choose ports, make folders and secrets, and save the state file, before any process starts."""
    ports, moved = choose_ports(settings.ports, host=settings.host, fixed=settings.fixed_ports)
    notes = [str(change) for change in moved]
    if settings.redis_url is None and (age := redis_server.check(settings)) is not None:
        notes.append(age)
    if not settings.ray_token_file.exists():
        state_file.write_private(settings.ray_token_file, secrets.token_hex(32))
    make_audit_key(settings)
    running = RunningPlatform(
        settings=settings,
        code=code_of(settings.project),  # before anything of it is imported
        boot=state_file.boot_id(),
        ports=ports,
        redis_url=settings.redis_url or redis_server.url(settings, ports.redis),
        run_folder=_fresh(run_folder(settings.home)),
        notes=tuple(notes),
    )
    return running.save()


def _with_session(running: RunningPlatform, part: str, session: ProcessSession) -> RunningPlatform:
    return running.model_copy(update={"sessions": {**running.sessions, part: session}}).save()


def run_folder(home: Path) -> Path:
    """Name the folder for sockets of the platform in `home`.

    The path is short: HAProxy takes 97 bytes for a socket's path, and Serve puts a node's id of 56 into it.
    """
    digest = hashlib.sha256(f"{os.getuid()} {home}".encode()).hexdigest()[:8]
    temporary = Path(tempfile.gettempdir())
    short = temporary if len(str(temporary)) <= SHORT else Path("/tmp")  # noqa: S108  # see above
    return short / f"toque-{digest}"


def _close(home: Path) -> None:
    """Make the state folder if it is missing, and let only its owner enter: tokens, logs and data lie in it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "lock").touch()
    except OSError as error:
        raise LocalError(
            f"the state folder {home} cannot be written to: {error.strerror}; go to a folder of yours, or give another "
            "(`toque --home FOLDER`)"
        ) from error
    found = home.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        home.chmod(0o700)


def _fresh(folder: Path) -> Path:
    """Make an empty folder that only this user can read. Raises: LocalError if another user owns it."""
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise LocalError(f"{folder} belongs to someone else; remove it")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise LocalError(f"{folder} was made by someone else meanwhile; remove it") from error
    return folder


def _end(home: Path, *, report: Report = lambda _: None) -> int:
    platform = state_file.find_platform(home)
    recorded = platform.sessions if platform is not None and platform.boot == state_file.boot_id() else {}
    found = processes.of_platform(home, recorded.values())
    if found:
        report(f"ending {len(found)} processes")
    redis = {name: session for name, session in recorded.items() if name == "redis"}
    others = [session for name, session in recorded.items() if name not in redis]
    keep = {session.leader for session in redis.values()}
    # Redis is ended last: other processes may still write to it while they end.
    processes.end(home, others, grace_s=GRACE_S, keep=keep)
    left = processes.end(home, [*redis.values(), *others], grace_s=GRACE_S)
    if left:
        shown = "; ".join(f"{each.pid} {each.command[:60]}" for each in left)
        raise LocalError(f"these processes would not end: {shown}")
    state_file.delete_state_file(home)
    return len(found)


def _sweep_weights() -> None:
    """Remove the weights of engines whose doors were ended: those of other platforms of this user stay."""
    from toque.functions.generative.engines import sweep_scratch  # late: an HTTP client, for this alone

    sweep_scratch()


def _disconnect() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Serialize starts of a user's platforms: a port that one has chosen is not bound yet when the next looks."""
    with (temporary_folder("starting") / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Lock a state folder, so that one `up` or `down` at a time works on it."""
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
