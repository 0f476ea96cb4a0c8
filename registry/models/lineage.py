"""Lineage of versions: the data, code and run they were made from, and their dependents."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from toque.registry.store import TableSnapshot


class Lineage(BaseModel):
    """The run, data, features and code that a version was made from.

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
        """Whether the version was made from `source`: a table snapshot, a run id, or a digest of code or features."""
        if isinstance(source, TableSnapshot):
            return source in self.datasets
        return source in {self.run, self.code, *self.features.values()}


class Dependent(BaseModel):
    """A version that depends on a given source, and how it is used now.

    aliases: that point to it; arm: the arm of live traffic it serves, if any.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    arm: str | None = None
