"""`toque token`: who may do what."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.client import client_of
from ray_apps.cli.command import add, group
from ray_apps.cli.output import say, table

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

ROLES = ("viewer", "predictor", "operator", "approver", "admin")


def register(commands: Commands) -> None:
    """Add the commands."""
    tokens = group(commands, "token", "bearer tokens: create, list, revoke")
    making = add(tokens, "create", _create, "make a token and print it, this once")
    making.add_argument("name", help="whose it is; stands in every journal entry made with it")
    making.add_argument("role", choices=ROLES, help="each may do all that the ones before it may")
    making.add_argument("--expires", metavar="TIME", help="ISO time with offset (default: never)")
    add(tokens, "list", _list, "list the tokens, without their secrets")
    add(tokens, "revoke", _revoke, "end a token").add_argument("name")


def _create(given: argparse.Namespace) -> int:
    body = {"name": given.name, "role": given.role, "expires_at": given.expires}
    say(client_of(given).send("POST", "/tokens", body=body).json()["token"])
    return 0


def _list(given: argparse.Namespace) -> int:
    rows = [
        (
            each["name"],
            each["role"],
            each["created_by"],
            each["created_at"],
            each["expires_at"],
            each["revoked_at"],
        )
        for each in client_of(given).get("/tokens")
    ]
    table(("name", "role", "made by", "at", "expires", "revoked"), rows)
    return 0


def _revoke(given: argparse.Namespace) -> int:
    client_of(given).send("DELETE", f"/tokens/{given.name}")
    say(f"revoked; {given.name} is refused everywhere within two seconds")
    return 0
