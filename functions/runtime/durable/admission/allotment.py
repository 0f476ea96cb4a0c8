"""What the platform allots the experiments of a workspace: written in the access list, by admins of all workspaces alone."""

from __future__ import annotations

from collections.abc import Callable

from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.admission.request import Quota
from toque.registry.access import DEFAULT_WORKSPACE, Access


def allotment_in(used: Context) -> Callable[[], Quota]:
    """Return what finds the allotment of a context's workspace; it reads the access list at most once a second.

    It raises Unavailable if the list was never read and cannot be.
    """
    access = Access(used.in_workspace(DEFAULT_WORKSPACE).store, actor=used.actor)

    def find() -> Quota:
        workspace = access.find_workspace(used.workspace)
        return Quota() if workspace is None else Quota(**workspace.queue.model_dump())

    return find
