"""OpenID Connect: signed tokens (JWTs) of one configured issuer stand for principals, as tokens of the access list do.

`with_oidc` puts both behind one interface for the doors. It knows nothing of requests, routes or workspaces' contents.
"""

from toque.ray_apps.oidc.settings import ClaimGrant, OidcSettings
from toque.ray_apps.oidc.verifier import OidcVerifier, with_oidc

__all__ = ["ClaimGrant", "OidcSettings", "OidcVerifier", "with_oidc"]
