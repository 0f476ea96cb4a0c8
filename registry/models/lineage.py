"""Where a version came from, and what depends on a piece of data or code."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from registry.store import TableSnapshot


class Lineage(BaseModel):
    """What a version was made from.

    run: id of the run that trained it; datasets: table snapshots; features: feature view -> digest of its
    definition; code: digest of the code; parent: the version it challenges or was tuned from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None = None
    datasets: list[TableSnapshot] = Field(default_factory=list)
    features: dict[str, str] = Field(default_factory=dict)
    code: str | None = None
    parent: int | None = None

    def depends_on(self, source: TableSnapshot | str) -> bool:
        """Whether `source` is among them: a table snapshot, or a run id or digest of code or features."""
        if isinstance(source, TableSnapshot):
            return source in self.datasets
        return source in {self.run, self.code, *self.features.values()}


class Dependent(BaseModel):
    """A version that depends on what was asked about, and what it is doing now.

    aliases: those that point to it; arm: the arm of live traffic it serves, if any.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    arm: str | None = None
