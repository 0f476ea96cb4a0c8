"""The platform under attack, and what an attack found."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Target:
    """A running platform that is attacked.

    url: of its HTTP door; grpc_address: host and port, None: not attacked. token: an admin's. model: one that is served,
    None: no honest caller beside the attack.
    """

    url: str
    grpc_address: str | None
    token: str
    model: str | None = None

    def headers(self, token: str | None = None) -> dict[str, str]:
        """Authorization header of a token, by default the admin's."""
        return {"Authorization": f"Bearer {token or self.token}"}

    def client(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        """Make a client in the name of a token; "" for one without."""
        headers = {} if token == "" else self.headers(token)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, **options)

    async def token_of(self, role: str, **fields: Any) -> str:
        """Create a token of a role for the attack; it ends by itself."""
        async with self.client() as client:
            name = f"attack-{role}-{id(fields):x}"
            await client.delete(f"/tokens/{name}")
            answer = await client.post("/tokens", json={"name": name, "role": role, **fields})
            answer.raise_for_status()
            made: str = answer.json()["token"]
            return made


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an attack. bounded: whether it came to nothing; details: with figures."""

    name: str
    bounded: bool
    details: str


Outcome = tuple[bool, str]
Attack = Callable[[Target], Coroutine[Any, Any, Finding]]


class Attacks(dict[str, Attack]):
    """Attacks by name, in the order in which they run; decorates functions that tell whether they came to nothing, and figures.

    by_grpc: whether they are left out of a platform without gRPC.
    """

    def __init__(self, *, by_grpc: bool = False) -> None:
        super().__init__()
        self._by_grpc = by_grpc

    def __call__(self, attack: Callable[[Target], Coroutine[Any, Any, Outcome]]) -> Attack:
        """Add an attack to the list."""

        @wraps(attack)
        async def attacked(target: Target) -> Finding:
            if self._by_grpc and target.grpc_address is None:
                return Finding(attack.__name__, bounded=True, details="left out: give --grpc HOST:PORT")
            return Finding(attack.__name__, *await attack(target))

        self[attack.__name__] = attacked
        return attacked
