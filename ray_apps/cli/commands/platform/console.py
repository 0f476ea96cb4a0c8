"""`toque ui`: opens the console in a browser, signed in as the owner of the command line's token."""

from __future__ import annotations

import webbrowser

from toque.ray_apps.cli.arguments import flag
from toque.ray_apps.cli.command import Commands, Given, add
from toque.ray_apps.cli.output import message

_PRINT = flag("--print", "print the address instead of opening it, for a browser on another machine")


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    add(commands, "ui", _ui, _PRINT)


def _ui(given: Given) -> None:
    """Open the console in a browser, signed in by a code that counts once."""
    made = given.client.send("POST", "/sign-in-codes").json()
    named = f"&next=/workspaces/{given.workspace}/ui/" if given.workspace else ""
    address = given.client.address(made["path"] + named)
    opened = not given.print and webbrowser.open(address)
    until = f"the code counts once, until {made['expires_at']}"
    message(given.output, f"opened {address}" if opened else f"{address}\n({until})", made | {"url": address})
