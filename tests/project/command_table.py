"""Commands that the platform's functions declare: `python -m tests.project.command_table` writes their table anew."""

from __future__ import annotations

import json

from toque.functions.runtime import catalog
from toque.ray_apps.cli.declared import TABLE
from toque.ray_apps.function_schemas import command_table
from toque.ray_apps.gateway.routes.functions import describe


def table() -> str:
    """Text of the table, a function a line."""
    described = (
        describe(each).model_dump(mode="json")
        for each in catalog.discover()
        if each.command and each.reference.startswith("toque.functions.")
    )
    lines = [json.dumps(command_table(each), ensure_ascii=False) for each in described]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
