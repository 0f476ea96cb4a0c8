"""Runs without a cluster: in a thread, or in a child process where a run must be killed with all that it started.

Forking a process that has threads (Ray, torch) is not safe, and a fresh interpreter takes most of a second to
import. So one clean interpreter, the fork server, imports the runtime once and forks a child for each job.
Fork server and children end when their parent does. What only waits for others runs in a thread: starting a process takes
seconds beside serving.
"""

from __future__ import annotations

import atexit
import contextvars
import importlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Literal

from toque.clusters.telemetry.metrics import folder_of_process, keep_series
from toque.clusters.telemetry.tracing import flush_spans
from toque.functions.runtime.context import set_up_worker
from toque.functions.runtime.declaration import ONCE, Retries
from toque.functions.runtime.errors import Cancelled, InvalidResult, TimedOut, WorkerLost
from toque.functions.runtime.reference import pack, unpack
from toque.functions.runtime.run.execution import Outcome, run_with_retries
from toque.functions.runtime.run.interruption import Interruptible

START_PATIENCE_S = 60.0
State = Literal["starting", "ready", "busy", "gone", "failed"]  # failed: died before it was ready
Job = Callable[[], Outcome]
PREIMPORTED = "toque.functions."  # its modules start no thread, and so may be imported before a fork


class Child:
    """Child process that leads a process group of its own and runs one job.

    name: for messages; module: that declares the function; one of the platform's is imported once for all
    children; ready: a module that the child imports at once, before it has a job.
    """

    def __init__(self, name: str, *, retries: Retries, module: str = "", ready: str = "") -> None:
        self._name = name
        self._retries = retries
        self._state: State = "starting"
        setup: dict[str, Any] = {"path": sys.path, "directory": str(Path.cwd())}
        setup |= {"environment": dict(os.environ), "ready": ready, "telemetry": folder_of_process()}
        self._connection = _fork_server().connect()
        self._connection.send(module if module.startswith(PREIMPORTED) else "")
        if not self._connection.poll(START_PATIENCE_S):
            raise WorkerLost(
                f"{name}: no process started within {START_PATIENCE_S} s; is the machine out of memory?"
            )
        self._pid = int(self._connection.recv())
        self._connection.send(setup)

    def run(self, job: Job) -> Child:
        """Send the child its job, its only one."""
        self._state = "gone"
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died, as the outcome will say
            self._connection.send_bytes(pack(job))
        return self

    def state(self) -> State:
        """Return the state of a child, which is gone for whoever looks for one without a job once it has one."""
        if self._state in {"starting", "ready"} and self._connection.poll():
            try:
                self._state = self._connection.recv()
            except (EOFError, ConnectionError):
                self._state = "failed" if self._state == "starting" else "gone"
        return self._state

    def node(self) -> None:
        """Return None, as no Ray node has the child."""

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the job's outcome; after `timeout_s` the child is killed."""
        try:
            if not self._connection.poll(timeout_s):
                timed_out = TimedOut(f"{self._name} ran past timeout_s={timeout_s} and was killed")
                return Outcome.failed(timed_out, retries=self._retries)
            outcome: Outcome = unpack(self._connection.recv_bytes())  # our own child's bytes
        except (EOFError, ConnectionError):
            lost = WorkerLost(f"{self._name}: its process {self._pid} died; was it killed, or out of memory?")
            return Outcome.failed(lost, retries=self._retries)
        else:
            return outcome
        finally:
            self.kill()
            self._connection.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether the outcome can be read or the child has died."""
        return self._connection.closed or self._connection.poll(timeout_s)

    def kill(self) -> None:
        """Kill the child process and its process group."""
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended


class LocalRun:
    """Run in a thread of its own; with `timeout_s` each attempt is a child process that is killed after it."""

    def __init__(
        self, name: str, job: Job, *, retries: Retries, timeout_s: float | None, module: str = ""
    ) -> None:
        self._name = name
        self._module = module
        self._job = job
        self._retries = retries
        self._timeout_s = timeout_s
        self._outcome: Outcome | None = None
        self._child: Child | None = None
        self._cancelled = threading.Event()
        self._running = Interruptible()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=f"function-{name}", daemon=True
        )
        self._thread.start()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the result; see `Future.result`."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self._name} has not ended after {timeout_s} s of waiting; it goes on")
        if self._outcome is None:
            raise Cancelled(f"{self._name} was cancelled")
        return self._outcome.unwrap()

    def done(self) -> bool:
        """Whether the run has ended; see `Future.done`."""
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Kill the child process, or raise Cancelled in the thread at its next bytecode."""
        self._cancelled.set()
        if self._child:
            self._child.kill()
        else:
            self._running.interrupt()

    def _run(self) -> None:
        try:
            with self._running:
                outcome = run_with_retries(self._attempt, retries=self._retries, pause=self._cancelled.wait)
        except Cancelled:
            return
        if not self._cancelled.is_set():
            self._outcome = outcome

    def _attempt(self) -> Outcome:
        if self._cancelled.is_set():
            raise Cancelled(self._name)
        if self._timeout_s is None:
            return self._job()
        try:
            self._child = Child(self._name, retries=self._retries, module=self._module)
        except Exception as error:  # noqa: BLE001  # arguments that cannot be pickled, a fork server that cannot start
            return Outcome.failed(error, retries=ONCE)
        return self._child.run(self._job).outcome(self._timeout_s)


class ThreadRun:
    """Job in a thread of its own. Nobody can kill it: it ends by the timeouts of what it calls."""

    def __init__(self, name: str, job: Job) -> None:
        self._job = job
        self._outcome: Outcome
        self._thread = threading.Thread(target=self._run, name=f"function-{name}", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether the job has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def outcome(self) -> Outcome:
        """Wait for the job's end and return its outcome."""
        self._thread.join()
        return self._outcome

    def kill(self) -> None:
        """Leave the job to its end."""

    def _run(self) -> None:
        try:
            self._outcome = self._job()
        except BaseException as error:  # noqa: BLE001  # told to whoever waits, as of a process that died
            self._outcome = Outcome.failed(error, retries=ONCE)


class _ForkServer:
    """Parent's side of the fork server: starts the clean interpreter and connects to its children."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="toque-")
        self._address = str(Path(self._folder.name) / "forkserver")
        self._key = secrets.token_bytes(32)
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter
            [
                sys.executable,
                "-c",
                "from toque.functions.runtime.run.forkserver import serve; serve()",
                self._address,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        )
        atexit.register(self.close)
        ready = self._exchange_key()
        if ready != b"ready\n":
            raise WorkerLost(f"the fork server of local processes did not start; it wrote {ready!r}")

    def connect(self) -> Connection:
        """Connect to a newly forked child."""
        return Client(self._address, "AF_UNIX", authkey=self._key)

    def alive(self) -> bool:
        """Whether the fork server's interpreter still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the fork server by closing its standard input."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._folder.cleanup()

    def _exchange_key(self) -> bytes:
        if self._process.stdin is None or self._process.stdout is None:
            raise WorkerLost("the fork server of local processes has no pipes")
        self._process.stdin.write(self._key.hex().encode() + b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


_starting = threading.Lock()


def _fork_server() -> _ForkServer:
    with _starting:
        if not _server_of(os.getpid()).alive():
            _server_of.cache_clear()
        return _server_of(os.getpid())


@cache
def _server_of(pid: int) -> _ForkServer:  # by pid: a forked child must not use its parent's
    del pid
    return _ForkServer()


def serve() -> None:
    """Fork a child for each connection, until standard input closes; the key comes on its first line."""
    address = sys.argv[1]
    key = bytes.fromhex(sys.stdin.readline().strip())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with Listener(address, "AF_UNIX", backlog=128, authkey=key) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        os.dup2(2, 1)  # what children print goes where errors go, not into our pipe
        _end_with_parent(lambda: os.read(0, 1))
        while True:
            connection = listener.accept()
            with connection:
                _preimport(connection)
                if os.fork() == 0:
                    _serve_job(connection)


def _preimport(connection: Connection) -> None:
    """Import the module of the job, once for all later children."""
    with suppress(EOFError, ConnectionError, ImportError):  # the child meets the error again, and reports it
        module = connection.recv() if connection.poll(START_PATIENCE_S) else ""
        if module:
            importlib.import_module(module)


def _serve_job(connection: Connection) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.send(os.getpid())
    setup = connection.recv()
    sys.path[:] = setup["path"]
    os.chdir(setup["directory"])
    os.environ.clear()
    os.environ.update(setup["environment"])
    set_up_worker()
    if setup["telemetry"] is not None:
        keep_series("function", setup["telemetry"])
    if setup["ready"]:
        with suppress(ImportError):  # the job meets the error again, and reports it
            importlib.import_module(setup["ready"])
        connection.send("ready")
    try:
        job = connection.recv_bytes()
    except (EOFError, ConnectionError):
        os._exit(0)  # its parent ended before it had a job
    _end_with_parent(lambda: connection.poll(None))
    outcome = _run(job)
    flush_spans()  # before the outcome: whoever has that kills this process
    connection.send_bytes(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _run(job: bytes) -> bytes:
    try:
        result = unpack(job)()  # our own parent's bytes
    except Exception as error:  # noqa: BLE001  # also of a job that cannot be unpickled
        return pack(Outcome.failed(error, retries=Retries(max_attempts=1)))
    try:
        return pack(result)
    except Exception as error:  # noqa: BLE001  # any error of the user's object while it is pickled
        invalid = InvalidResult(f"the result cannot leave the process that made it: {error}")
        return pack(Outcome.failed(invalid, retries=Retries(max_attempts=1)))


def _end_with_parent(wait: Callable[[], Any]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
