"""Makes the first administrator's token of a cluster, once, and puts it into a file or a Kubernetes secret."""

from __future__ import annotations

import base64
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import httpx

from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.local.state_file import write_private
from toque.registry import EVERY_WORKSPACE, Access, NotFound, Role, utc_now
from toque.registry.times import to_text

if TYPE_CHECKING:
    from toque.registry import ObjectStore
    from toque.registry.access import TokenRecord

NAME = "admin"
ACTOR = "toque-deploy"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class TokenPlace(Protocol):
    """Where the token is kept; `where` names it for a person."""

    @property
    def where(self) -> str:
        """Name of the place, for a person."""
        ...

    def read(self) -> str:
        """Read the token, or "" if there is none. Raises: DeploymentError."""
        ...

    def write(self, token: str) -> None:
        """Keep the token, readable by its owner only. Raises: DeploymentError."""
        ...


def ensure_first_token(store: ObjectStore, place: TokenPlace, *, renew: bool = False) -> str:
    """Make the administrator's token unless there is one; returns what came of it, in words.

    A platform that has another administrator's token already gets none. Killed before the token is kept, the next call
    revokes it and makes another, as nobody can know its secret. One that was used is known to somebody: it stays, though
    the place lacks it, as that of a head which replaces a lost one does.

    renew: revoke the token and make another all the same, for who lost its secret; a place that cannot be written leaves the old one.
    Raises: DeploymentError if the place has the token of another platform.
    """
    access = Access(store, actor=ACTOR)
    kept = place.read()
    if kept and access.verify(kept) and not renew:
        return f"admin token: in {place.where}"
    known = access.list_tokens()
    if kept and all(each.name != NAME for each in known):
        raise DeploymentError(
            f"{place.where} has a token that this platform does not know; move it away, or name another place"
        )
    now = utc_now()
    admins = [each for each in known if each.is_live(now) and _is_admin(each)]
    others = [each.name for each in admins if each.name != NAME]
    if others and not renew:
        return f"admin token: none made, as {', '.join(others[:3])} can make tokens"
    used = [each.last_used_at for each in admins if each.name == NAME and each.last_used_at]
    if used and not renew:
        return (
            f"admin token: made before and last used {to_text(used[0])}, so none was made, and {place.where} has none; "
            "who lost its secret gets another by `toque deploy --new-token`, which revokes that one"
        )
    if renew:
        place.write(
            kept
        )  # a place that cannot be written, as for want of rights, ends this before the old token does
    with suppress(NotFound):  # usually there is no such token
        access.revoke(NAME)
    place.write(access.create_token(NAME, "admin", workspace=EVERY_WORKSPACE))
    return f"admin token: made, in {place.where}"


def _is_admin(token: TokenRecord) -> bool:
    return any(each.allows(Role.admin, EVERY_WORKSPACE) for each in token.grants)


class TokenFile:
    """A file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser()

    @property
    def where(self) -> str:
        """Path of the file, without `~`."""
        return str(self._path)

    def read(self) -> str:
        """Read the token, or "" if there is no file."""
        return self._path.read_text().strip() if self._path.exists() else ""

    def write(self, token: str) -> None:
        """Write the file atomically with mode 0600."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path, token)


class TokenSecret:
    """The key `token` of a Kubernetes secret in this pod's namespace, through the API server by the pod's account."""

    def __init__(
        self, name: str, *, account: Path = _ACCOUNT, server: str = "https://kubernetes.default.svc"
    ) -> None:
        self._name, self._account, self._server = name, account, server

    @property
    def where(self) -> str:
        """Kind and name of the secret."""
        return f"secret {self._name}"

    def read(self) -> str:
        """Read the token, or "" if there is no such secret. Raises: DeploymentError."""
        response = self._ask("GET", f"/{self._name}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return ""
        found = self._accepted(response, "read it").json()
        return base64.b64decode(found.get("data", {}).get("token", "")).decode().strip()

    def write(self, token: str) -> None:
        """Create the secret, or replace what it holds. Raises: DeploymentError."""
        data = {"token": base64.b64encode(token.encode()).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self._name}, "data": data}
        response = self._ask("POST", "", body)
        if response.status_code == httpx.codes.CONFLICT:
            response = self._ask("PUT", f"/{self._name}", body)
        self._accepted(response, "create and update it")

    def _accepted(self, response: httpx.Response, what: str) -> httpx.Response:
        if response.is_success:
            return response
        raise DeploymentError(
            f"{self.where}: the API server answers {response.status_code} {response.reason_phrase}; may the pod's account {what}?"
        )

    def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        namespace, token = ((self._account / name).read_text().strip() for name in ("namespace", "token"))
        url = f"{self._server}/api/v1/namespaces/{namespace}/secrets{path}"
        headers = {"Authorization": f"Bearer {token}"}
        https = self._server.startswith("https")
        verify = ssl.create_default_context(cafile=str(self._account / "ca.crt")) if https else True
        try:
            return httpx.request(method, url, json=body, headers=headers, verify=verify, timeout=10)
        except httpx.TransportError as error:
            raise DeploymentError(f"{self.where}: the API server does not answer: {error}") from error
