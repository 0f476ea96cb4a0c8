"""Starts and ends the platform of a state folder, and deploys what the users' projects declare.

`up` starts Redis and Ray's head together, connects, deploys, starts the job endpoint, and records each process session
as soon as it exists, so that `down` can end everything after a crash at any point. The administrator's token is made
once and kept in the state folder. The projects' code is digested to tell whether what runs is what lies there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toque.clusters.file_lock import file_lock
from toque.ray_apps.config.applications import Layout, applications, follows_streams, placements_of
from toque.ray_apps.local import jobs, processes, ray_head, redis_server, state_file
from toque.ray_apps.local.audit_key import make_audit_key, open_platform_store
from toque.ray_apps.local.errors import LocalError
from toque.ray_apps.local.processes import ProcessSession
from toque.ray_apps.local.settings import Settings, choose_ports
from toque.ray_apps.local.state_file import RunningPlatform, write_private
from toque.ray_apps.local.status import status
from toque.ray_apps.serve.settings import stay_on_loopback
from toque.registry import EVERY_WORKSPACE, Access, AlreadyExists, NotFound
from toque.registry.store import temporary_folder

if TYPE_CHECKING:
    from toque.functions.placement import Placement


GRACE_S = 3.0
_NAMED = 5  # files that a note names
SHORT = 16  # longest path of a temporary folder, in characters, that leaves room for its sockets' paths

Report = Callable[[str], None]
NAME = "admin"  # of the administrator's token
ACTOR = "toque-up"


def up(settings: Settings, *, report: Report = lambda _: None) -> RunningPlatform:
    """Start the platform, or return the one that runs, with the models that were declared since; one with dead parts is started anew.

    One that runs keeps the code that it was started with, and says so if the projects' files are others by now.

    report: called with each step in a few words. This process stays connected to Ray, as a driver.
    Raises: PortTaken, StartFailed; LocalError if one runs with other settings than are given. On any error, and on Ctrl-C, everything started is ended again.
    """
    _close(settings.home)
    with file_lock(settings.home / "lock"):  # one `up` or `down` at a time works on it
        recorded = state_file.find_platform(settings.home)
        if recorded is not None and status(settings.home).healthy:
            _check_as_started(recorded, settings)
            _report_older_code(recorded, report)
            connect(recorded)
            return _with_new_models(recorded, report)
        _end(settings.home)
        try:
            # a port that one start has chosen is not bound yet when the next looks
            with file_lock(temporary_folder("starting") / "lock"):
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
    with (
        file_lock(home / "lock") if home.exists() else nullcontext()
    ):  # its processes may outlive a deleted folder
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
    models = models_of(recorded.settings.project)
    added = [name for name in models if name not in recorded.models]
    if not added:
        report("already up")
        return recorded
    report(f"adding {', '.join(added)}")
    running = recorded.model_copy(update={"models": (*recorded.models, *added)})
    deploy_models(running, added)
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
        models = executor.submit(models_of, settings.project)
        redis_server.wait(settings, running.redis_url)
        running = record_timing("redis", running)
        admin_token(settings)
        for name in create_workspaces(settings):
            report(f"created workspace {name}")
        ray_head.wait_ended(running)
        running = record_timing(
            "ray", running, models=models.result(), streams=follows_streams(settings.project)
        )
    cluster_id = connect(running)
    running = record_timing(
        "connected", _with_session(running, "jobs", jobs.start(running, cluster_id=cluster_id))
    )
    report(f"deploying gateway, ticker and {len(running.models)} model(s)")
    deploy(running)
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


def admin_token(settings: Settings) -> str:
    """Read the token in `settings.token_file`; if the store does not know it, create a new one there.

    A store that was emptied or replaced does not know the old token.
    """
    access = Access(open_platform_store(settings), actor=ACTOR)
    kept = settings.token_file.read_text().strip() if settings.token_file.exists() else ""
    if kept and access.verify(kept):
        return kept
    with suppress(NotFound):  # usually there is no such token
        access.revoke(NAME)  # a live token whose secret is lost
    made = access.create_token(NAME, "admin", workspace=EVERY_WORKSPACE)
    write_private(settings.token_file, made)
    return made


def create_workspaces(settings: Settings) -> list[str]:
    """Create the workspaces of the projects that the platform does not have yet; returns their names."""
    access = Access(open_platform_store(settings), actor=ACTOR)
    known = {each.name for each in access.list_workspaces()}
    from toque.functions.runtime.context import projects_of  # late: it imports Ray

    missing = [name for name in projects_of(settings.project or "") if name not in known]
    for name in missing:
        with suppress(AlreadyExists):  # somebody made it just now
            access.create_workspace(name)
    return missing


def code_of(project: str | None) -> dict[str, str]:
    """Digest each file of Python code of the projects, by its path; nothing of them is imported. project: as TOQUE_PROJECT says."""
    modules = [item.rpartition("=")[2].strip() for item in (project or "").split(",")]
    files = sorted({path for module in modules if module for path in _files(module)})
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the files that were changed, added or removed."""
    return sorted(path for path in {*before, *now} if before.get(path) != now.get(path))


def _files(module: str) -> Iterator[Path]:
    """Yield the files of a module, or of a package with all below it.

    Found from its first package on, as to ask for a module inside would import that: it may bring Ray, which reads the platform's
    environment when it is first imported.
    """
    first, *inner = module.split(".")
    try:
        found = find_spec(first)
    except ValueError:  # a module without a file
        return
    if found is None:
        return
    places = [Path(each).joinpath(*inner) for each in found.submodule_search_locations or ()]
    if not inner and found.origin is not None and not places:
        yield Path(found.origin)
    for place in places:
        yield from place.rglob("*.py")
        if (file := place.with_suffix(".py")).is_file() and inner:
            yield file


def connect(running: RunningPlatform) -> str:
    """Connect this process to the head; returns the cluster's id in hex.

    The process stays connected, and its environment names this platform from now on, so that functions called here
    use it. Raises: LocalError if the process is connected to another cluster.
    """
    os.environ.update(ray_head.platform_environment(running) | ray_head.serve_environment(running))
    import ray  # late: it must see the environment above

    if ray.is_initialized():
        address = ray.get_runtime_context().gcs_address
        if address == running.ray_address:
            return _cluster_id(running)
        raise LocalError(f"this process uses Ray at {address}; call ray.shutdown() before `up`")
    if running.settings.on_loopback:
        stay_on_loopback()
    ray.init(
        address=running.ray_address,
        namespace="toque",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return _cluster_id(running)


def deploy(running: RunningPlatform) -> None:
    """Start Serve on the platform's address, and deploy every application; returns when all answer."""
    from ray import serve  # late: as above
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options=HTTPOptions(host=running.settings.host, port=running.ports.http),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    grpc = {"url": running.url, "host": running.settings.host, "port": running.ports.grpc}
    doors = running.settings.generative
    layout = Layout(
        gateway={"with_mlflow": True},
        mlflow=None,
        grpc=grpc,
        streams={} if running.streams else None,
        generative={"num_replicas": doors, "num_cpus": 0} if doors else None,
    )
    serve.run_many([each.target() for each in applications(placements(running), layout)])


def deploy_models(running: RunningPlatform, added: Collection[str]) -> None:
    """Serve further models of a running platform; gateway and ticker are replaced, since they hold the project as it was.

    added: their qualified names. Returns when all answer.
    """
    from ray import serve  # late: as above

    new = {name: place for name, place in placements(running).items() if name in added}
    layout = Layout(gateway={"with_mlflow": True}, mlflow=None)
    serve.run_many([each.target() for each in applications(new, layout)])


def models_of(project: str | None) -> tuple[str, ...]:
    """List the models that the users' projects declare, by qualified name. project: as TOQUE_PROJECT says."""
    return tuple(placements_of(project))


def placements(running: RunningPlatform) -> dict[str, Placement]:
    """Read from the projects where each model of a platform is served, by qualified name."""
    declared = placements_of(running.settings.project) if running.models else {}
    return {name: declared[name] for name in running.models}


def _cluster_id(running: RunningPlatform) -> str:
    from toque.clusters.ray_private import GcsClient  # late: it loads Ray

    found: str = GcsClient(address=running.ray_address).cluster_id.hex()
    return found
