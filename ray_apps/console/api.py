"""Client of the platform's own HTTP API within its process, in the name of the person who looks at a page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from starlette.types import ASGIApp

from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS

_WORKSPACE = WORKSPACE_HEADERS[0]


class ApiError(Exception):
    """Refusal or failure of an API call. status: of the response; detail: the API's own words."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Api:
    """Calls of one viewer in one workspace; every door's rules hold as for any client.

    app: the gateway's application. token: the viewer's. client: address that the viewer asks from, for the audit.
    """

    def __init__(self, app: ASGIApp, token: str, *, workspace: str, client: str) -> None:
        self._app, self._client = app, client
        own = {"Accept-Encoding": "identity"}  # nothing is compressed on the way within a process
        self._headers = {"Authorization": f"Bearer {token}", _WORKSPACE: workspace, **own}

    async def get(self, path: str, /, **query: Any) -> Any:
        """Get the JSON of a path; query values that are None are left out. Raises: ApiError."""
        given = {name: value for name, value in query.items() if value is not None}
        return (await self._send("GET", path, params=given)).json()

    async def download(self, path: str, /) -> bytes:
        """Get the bytes of a file. Raises: ApiError."""
        return (await self._send("GET", path)).content

    async def find(self, path: str, /, **query: Any) -> Any:
        """Get the JSON of a path, or None if the API has nothing there. Raises: ApiError for any other refusal."""
        try:
            return await self.get(path, **query)
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND:
                return None
            raise

    async def call(self, function: str, /, **arguments: Any) -> Any:
        """Get the result of a platform function. Raises: ApiError."""
        return (await self._send("POST", f"/functions/{function}", json=arguments)).json()

    async def submit(self, function: str, arguments: Any, /) -> Any:
        """Queue a durable invocation of a function; returns its state. Raises: ApiError."""
        later = {"Prefer": "respond-async"}
        return (
            await self._send("POST", f"/functions/{quote(function, safe='')}", json=arguments, headers=later)
        ).json()

    async def send(self, method: str, path: str, body: Any = None, /) -> Any:
        """Send a change; returns the JSON of the response, None if it has no body. Raises: ApiError."""
        answer = await self._send(method, path, json={} if body is None else body)
        return answer.json() if answer.content else None

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=(self._client, 0))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://console", headers=self._headers
        ) as http:
            answer = await http.request(method, path, **options)
        if answer.is_error:
            raise ApiError(answer.status_code, _detail(answer))
        return answer


def _detail(answer: httpx.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return answer.text[:500]
    return str(problem.get("detail", problem)) if isinstance(problem, dict) else str(problem)
