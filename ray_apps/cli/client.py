"""The platform's HTTP door, for the commands."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from toque.ray_apps.cli.errors import Refused, Unreachable, UsageError

if TYPE_CHECKING:
    import httpx

# httpx is imported by the first client that is made: it takes 80 ms, and `toque --help` asks nobody.

TIMEOUT_S = 3600.0
STATE_FILE = "up.json"  # what `toque up` leaves in the state folder


class Client:
    """A client that asks the platform at `url` in the name of `token`.

    workspace: the one that it works in; None: the token's own.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        workspace: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        import httpx  # late: see above

        self._url = url
        self._unreachable = httpx.TransportError
        headers = {"Authorization": f"Bearer {token}"}
        headers |= {"X-Toque-Workspace": workspace} if workspace else {}
        self._workspace = workspace
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, transport=transport)

    def get(self, path: str, /, **query: Any) -> Any:
        """The JSON answer to a GET. Raises: Refused; Unreachable."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.send("GET", path, params=given).json()

    def send(self, method: str, path: str, *, body: Any = None, **options: Any) -> httpx.Response:
        """The answer to any request. Raises: Refused with the problem's detail; Unreachable; UsageError for what is no JSON.

        options: `headers` and `params` as httpx takes them.
        """
        if body is not None:
            options["content"] = _json_of(body)
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        with self._reaching():
            return _good(self._http.request(method, path, **options))

    def address(self, path: str) -> str:
        """Address of a path of the platform, for a browser."""
        return self._url.rstrip("/") + path

    def page(self, *parts: str) -> str:
        """Address of a page of the console in the workspace."""
        below = "" if self._workspace in {None, "default"} else f"/workspaces/{self._workspace}"
        return self.address("/".join((f"{below}/ui", *(quote(part, safe="") for part in parts))))

    def model_path(self, model: str) -> str:
        """The path at which a model of the workspace is served."""
        below = "" if self._workspace in {None, "default"} else f"/workspaces/{self._workspace}"
        return f"{below}/v2/models/{model}"

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """The answer to a request that is sent and read piece by piece. Raises: as `send`.

        options: `content` and `headers` as httpx takes them.
        """
        with self._reaching(), self._http.stream(method, path, **options) as answer:
            if answer.is_error:
                answer.read()
            yield _good(answer)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except self._unreachable as error:
            raise Unreachable(f"nothing answers at {self._url}: {error}; `toque up` starts it") from error


def client_of(home: str, *, workspace: str | None = None) -> Client:
    """A client from `TOQUE_URL` and `TOQUE_TOKEN`, else for what runs in the state folder `home`.

    Raises: Unreachable if there is neither.
    """
    url, token = os.environ.get("TOQUE_URL"), os.environ.get("TOQUE_TOKEN")
    if not url or not token:
        running_url, running_token = _running(Path(home).expanduser().resolve())
        url, token = url or running_url, token or running_token
    if not url or not token:
        raise Unreachable(f"nothing runs in {home}; `toque up` starts it, or set TOQUE_URL and TOQUE_TOKEN")
    return Client(url, token, workspace=workspace)


def call(client: Client, function: str, arguments: Any) -> Any:
    """The result of a function that stands behind a command, run by the platform.

    Raises: Refused with the function's own words: neither it nor the class of its error is a name that a user gave.
    """
    try:
        return client.send("POST", f"/functions/{function}", body=arguments).json()
    except Refused as refused:
        raise Refused(refused.status, re.sub(rf"^{function}: (?:[A-Z]\w+: )?", "", str(refused))) from refused


def _running(home: Path) -> tuple[str | None, str | None]:
    """Address and token of what `toque up` started in `home`, whether or not it still runs.

    Read here, for `toque.ray_apps.local`, which wrote it, imports Redis and the tables: half a second.
    """
    try:
        found = json.loads((home / STATE_FILE).read_text())
        token = (Path(found["settings"]["home"]) / "token").read_text().strip()
    except FileNotFoundError:
        return None, None
    return f"http://{found['settings']['host']}:{found['ports']['http']}", token


def _json_of(body: Any) -> bytes:
    """Serialise what a command line asks for. Raises: UsageError naming the value that JSON cannot carry."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        for path, value in _leaves("", body):
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(
                    f"{path or 'the value'} is {value}, which JSON cannot carry; give a finite number, or null in --json"
                ) from error
        raise UsageError(f"an argument is not valid UTF-8: {error}") from error


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what stands innermost in a JSON value, each with its path, as in `spec.limits.0`."""
    members = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if members is None:
        yield path, value
        return
    for name, member in members:
        yield from _leaves(f"{path}.{name}" if path else str(name), member)


def _good(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        raise Refused(answer.status_code, _detail(answer))
    return answer


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        problem = answer.text[:500]
    if not isinstance(problem, dict):
        return f"{answer.status_code} {answer.reason_phrase}: {problem}"
    return str(problem.get("detail") or problem.get("error") or problem.get("message") or problem)
