"""Access: roles and grants, bearer tokens, workspaces, and cryptographic signatures of model versions."""

from toque.registry.access.grants import (
    DEFAULT_WORKSPACE,
    EVERY_WORKSPACE,
    SERVICE_TIERS,
    UNLIMITED,
    Grant,
    Limits,
    Principal,
    QueueShare,
    Role,
    ServiceTier,
    Workspace,
    check_workspace,
    split_workspace_url,
    workspace_store,
    workspace_url,
)
from toque.registry.access.tokens import Access, TokenRecord

__all__ = [
    "DEFAULT_WORKSPACE",
    "EVERY_WORKSPACE",
    "SERVICE_TIERS",
    "UNLIMITED",
    "Access",
    "Grant",
    "Limits",
    "Principal",
    "QueueShare",
    "Role",
    "ServiceTier",
    "TokenRecord",
    "Workspace",
    "check_workspace",
    "split_workspace_url",
    "workspace_store",
    "workspace_url",
]
