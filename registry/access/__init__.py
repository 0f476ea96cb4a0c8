"""Access tokens with roles, and cryptographic signatures of model versions."""

from registry.access.tokens import Access, Principal, Role, TokenRecord

__all__ = ["Access", "Principal", "Role", "TokenRecord"]
