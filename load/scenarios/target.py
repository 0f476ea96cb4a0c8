"""Target of a load: which platform, which model, and what that model takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx


class NotPossible(Exception):  # noqa: N818 - a state of the world, said to a person
    """Raised where the load cannot be generated; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Target of the load: a model at an address, with a token that may call it."""

    url: str
    token: str | None = field(repr=False)
    model: str

    @property
    def headers(self) -> dict[str, str]:
        """Authorization header, where there is a token."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def metadata(self, path: str) -> Mapping[str, Any]:
        """Ask the server what the model at a path takes. Raises: NotPossible."""
        try:
            answer = httpx.get(f"{self.url}{path}", headers=self.headers, timeout=30.0)
            answer.raise_for_status()
            found: Mapping[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise NotPossible(f"no metadata of {path} at {self.url}: {error}") from None
        return found


def find_target(
    environment: Mapping[str, str], *, url: str | None = None, model: str | None = None
) -> Target:
    """Find the model and address to load.

    url, model: go before the environment. A model that nobody names is the first that has a champion.
    Raises: NotPossible if there is no address, no server or no model.
    """
    home = Path(environment.get("TOQUE_HOME", ".toque"))
    url = url or environment.get("TOQUE_URL") or _address(home / "up.json")
    token_file = home / "token"
    token = environment.get("TOQUE_TOKEN") or (
        token_file.read_text().strip() if token_file.exists() else None
    )
    target = Target(url.rstrip("/"), token, model or environment.get("TOQUE_MODEL") or "")
    return target if target.model else replace(target, model=_first_model(target))


def _address(state: Path) -> str:
    """Read the address of the platform that `toque up` started here."""
    try:
        running = json.loads(state.read_text())
        return f"http://{running['settings']['host']}:{running['ports']['http']}"
    except FileNotFoundError:
        raise NotPossible(
            f"TOQUE_URL is not set and {state} does not exist; start one with `make up`"
        ) from None


def _first_model(target: Target) -> str:
    """Ask the gateway for a model that has a champion."""
    url = target.url
    try:
        answer = httpx.get(f"{url}/models", headers=target.headers, timeout=10.0)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise NotPossible(f"GET {url}/models: {error}; name a model by --model or TOQUE_MODEL") from None
    models: list[dict[str, Any]] = answer.json()
    name = next((str(model["name"]) for model in models if "champion" in model.get("aliases", {})), None)
    if name is None:
        raise NotPossible(f"no model at {url} has a champion; promote one, or name it by --model")
    return name
