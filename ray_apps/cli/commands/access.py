"""`toque token`: who may do what."""

from __future__ import annotations

from ray_apps.cli.arguments import arg, limit
from ray_apps.cli.command import Commands, Given, add, group
from ray_apps.cli.output import columns, listing, message, newest_first

ROLES = ("viewer", "predictor", "operator", "approver", "admin")
_TOKENS = columns(
    "name | role | made by: created_by | made: created_at | expires: expires_at | revoked: revoked_at",
    wide="ID: id",
)
_NAME = arg("name", "whose it is; stands in every journal entry made with it")
_ROLE = arg("role", "each may do all that the ones before it may", choices=ROLES)
_EXPIRES = arg("--expires TIME", "ISO time with offset (default: never)")
_TOKEN = arg("token name", "whose token, as `toque token list` shows it")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    tokens = group(commands, "token", "Create, list and revoke bearer tokens.")
    add(tokens, "create", _create, _NAME, _ROLE, _EXPIRES)
    add(tokens, "list", _list, limit(100))
    add(tokens, "revoke", _revoke, _TOKEN)


def _create(given: Given) -> None:
    """Make a token and print it, this once."""
    body = {"name": given.name, "role": given.role, "expires_at": given.expires}
    made = given.client.send("POST", "/tokens", body=body).json()
    message(given.output, made["token"], made)


def _list(given: Given) -> None:
    """List the tokens, without their secrets."""
    found = newest_first(given.client.get("/tokens"))
    listing(given.output, _TOKENS, found, empty="there are no tokens", limit=given.limit)


def _revoke(given: Given) -> None:
    """End a token for good."""
    given.client.send("DELETE", f"/tokens/{given.token}")
    text = f"revoked; {given.token} is refused everywhere within two seconds"
    message(given.output, text, {"name": given.token, "revoked": True})
