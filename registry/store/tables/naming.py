"""Names of tables and their versions; what tables hold is in `table`, which brings Arrow and Delta.

A process that names a table and reads none has no use for either: they are 75 MB and half a second.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from toque.registry.errors import InvalidInput
from toque.registry.names import check_name

WRITING_H: Final = 7 * 24
"""Hours for which a data file that no version names may belong to a write in progress: a build writes its files first, and names all
of them in one commit when the last is done. A stream's events are committed batch by batch, see `writing_h`."""
RESERVED_TABLES: Final = frozenset(
    {
        "predictions",
        "predictions_large",
        "labels",
        "monitoring",
        "metrics",
        "features",
        "feature_health",
        "invocations",
        "reports",
        "scores",
    }
)
"""First parts of the names of tables that the platform writes itself."""
LOGS: Final = frozenset(
    {"predictions", "predictions_large", "labels", "monitoring", "feature_health", "scores"}
)
"""First parts of the names of tables that nothing names by version: files that are out of use may go after a week."""
_STREAMS = re.compile(r"features/[^/]+/(streams|rejected)/[^/]+")


def writing_h(table: str) -> int:
    """Hours after which a data file of a table that no version names was left by a killed writer, or by a log that was cut off."""
    return 1 if is_stream(table) else WRITING_H


class TableSnapshot(BaseModel):
    """One version of a table, by which a training set is named."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the table, such as `training/churn`.")
    version: int = Field(ge=0, le=1_000_000_000_000, description="Version of the table, counted from 0.")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def check_table_name(name: str, *, what: str = "table") -> str:
    """Return `name` if a user may write a table of it.

    Raises: InvalidInput for a malformed name, and for one of the platform's own tables or inside another table.
    """
    parts = [check_name(part, what=f"{what} name part") for part in name.split("/")]
    if any(part.lower().endswith(".delta") for part in parts):
        raise InvalidInput(f"{what}={name!r}: '.delta' ends the folder of a table; name this one otherwise")
    if parts[0].lower() in RESERVED_TABLES:
        raise InvalidInput(
            f"{what}={name!r}: tables under {parts[0]!r} are the platform's own; begin the name with another part "
            f"than {sorted(RESERVED_TABLES)}, e.g. 'training/…'"
        )
    return name


def is_log(name: str) -> bool:
    """Whether a table is one of `LOGS`, or of a stream."""
    return name.partition("/")[0] in LOGS or is_stream(name)


def is_stream(name: str) -> bool:
    """Whether a table has the events of a stream, or what a source kept aside: only its newest version is read."""
    return _STREAMS.fullmatch(name) is not None
