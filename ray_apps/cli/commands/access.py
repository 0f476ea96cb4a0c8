"""`toque token`: who may do what."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ray_apps.cli.client import Client, client_of
from ray_apps.cli.command import add, add_limit, group
from ray_apps.cli.names import known_among
from ray_apps.cli.output import Column, listing, message

if TYPE_CHECKING:
    from ray_apps.cli.command import Commands

ROLES = ("viewer", "predictor", "operator", "approver", "admin")
_TOKENS = (
    Column("name", "name"),
    Column("role", "role"),
    Column("made by", "created_by"),
    Column("made", "created_at"),
    Column("expires", "expires_at"),
    Column("revoked", "revoked_at"),
    Column("ID", "id", wide=True),
)


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    tokens = group(commands, "token", "create, list and revoke bearer tokens")
    making = add(tokens, "create", _create, "make a token and print it, this once")
    making.add_argument("name", help="whose it is; stands in every journal entry made with it")
    making.add_argument("role", choices=ROLES, help="each may do all that the ones before it may")
    making.add_argument("--expires", metavar="TIME", help="ISO time with offset (default: never)")
    add_limit(add(tokens, "list", _list, "list the tokens, without their secrets"), default=100)
    ending = add(tokens, "revoke", _revoke, "end a token")
    ending.add_argument("name", help="whose token, as `toque token list` shows it")


def _create(given: argparse.Namespace) -> int:
    body = {"name": given.name, "role": given.role, "expires_at": given.expires}
    made = client_of(given).send("POST", "/tokens", body=body).json()
    message(given.output, made["token"], made)
    return 0


def _list(given: argparse.Namespace) -> int:
    found = sorted(client_of(given).get("/tokens"), key=lambda each: str(each["created_at"]), reverse=True)
    listing(given.output, _TOKENS, found, empty="there are no tokens", limit=given.limit)
    return 0


def _revoke(given: argparse.Namespace) -> int:
    client = client_of(given)
    with known_among("token", given.name, lambda: _live(client), see="toque token list"):
        client.send("DELETE", f"/tokens/{given.name}")
    text = f"revoked; {given.name} is refused everywhere within two seconds"
    message(given.output, text, {"name": given.name, "revoked": True})
    return 0


def _live(client: Client) -> list[str]:
    return [each["name"] for each in client.get("/tokens") if each["revoked_at"] is None]
