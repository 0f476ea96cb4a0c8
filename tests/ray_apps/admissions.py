"""Admissions for tests: refusals stay in memory, and a busy machine's access list is waited for."""

from toque.ray_apps.admission import Admission
from toque.ray_apps.token_cache import TokenCache
from toque.registry import Access, Workspace


class KeptRefusals:
    """Refusals as they were recorded."""

    def __init__(self) -> None:
        self.kept: list[dict[str, object]] = []

    def record(self, **fields: object) -> None:
        self.kept.append(fields)


class Everywhere:
    """Workspaces, of which every name is one."""

    def find_workspace(self, name: str) -> Workspace | None:
        return Workspace(name=name)

    recall_workspace = find_workspace

    def recall_expired(self, _token: str) -> str | None:
        return None


def admission_of(cache: TokenCache) -> Admission:
    """An admission by a cache of principals, in any workspace."""
    return Admission(cache, Everywhere(), KeptRefusals())


def patient_admission(access: Access) -> Admission:
    """An admission by an access list that is waited for."""
    return Admission(TokenCache(access, patience_s=60), access, KeptRefusals())
