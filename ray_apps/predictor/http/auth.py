"""Authentication of the predictor's requests, over HTTP and gRPC, by the platform's admission."""

from __future__ import annotations

from typing import Final, Protocol

from ray_apps.admission.admission import Admission, Admitted, NotAdmitted, Rule
from ray_apps.predictor.protocol.errors import Denied, NotReady, Overloaded
from registry import DEFAULT_WORKSPACE, Principal, Role

__all__ = ["INFER", "READ", "Authenticator", "NoAuthentication", "TokenAuthenticator"]

INFER: Final = Rule((Role.caller,))
"""Rule of predictions."""
READ: Final = Rule((Role.caller, Role.viewer))
"""Rule of what describes a model: metadata, readiness, statistics."""


class Authenticator(Protocol):
    """Decides whether a request may be answered, by its Authorization header."""

    async def admit(
        self,
        authorization: bytes | None,
        rule: Rule = INFER,
        *,
        model: str | None = None,
        what: str = "",
        client: str = "",
    ) -> Admitted:
        """Admit the request, or raise its refusal; `release` the result once it is answered.

        model: that the request is for. what: method and path; client: address; both for the audit.
        Raises: Denied, Overloaded, NotReady.
        """
        ...


class NoAuthentication:
    """Admits every request, for platforms whose operator switched authentication off."""

    def __init__(self, workspace: str = DEFAULT_WORKSPACE) -> None:
        self._admitted = Admitted(Principal(name="anybody", grants=()), workspace)

    async def admit(
        self,
        authorization: bytes | None,  # noqa: ARG002  # of the protocol, as all that follow
        rule: Rule = INFER,  # noqa: ARG002
        *,
        model: str | None = None,  # noqa: ARG002
        what: str = "",  # noqa: ARG002
        client: str = "",  # noqa: ARG002
    ) -> Admitted:
        """Admit the request, whatever its header says."""
        return self._admitted


class TokenAuthenticator:
    """Admits requests whose token has a grant for the model in one workspace.

    workspace: of the predictor; None: the one that each caller's grants are in, for the proxy of all.
    """

    def __init__(self, admission: Admission, workspace: str | None = DEFAULT_WORKSPACE) -> None:
        self._admission, self._workspace = admission, workspace

    async def admit(
        self,
        authorization: bytes | None,
        rule: Rule = INFER,
        *,
        model: str | None = None,
        what: str = "",
        client: str = "",
    ) -> Admitted:
        """Admit the request if its Authorization header has a token with the grant that the rule requires.

        Raises: Denied (401 without a valid token, 403 without the grant); Overloaded beyond the token's or
            workspace's limits; NotReady if the store does not answer and the token is not known.
        """
        try:
            return await self._admission.admit(
                authorization, rule, what=what, workspace=self._workspace, model=model, client=client
            )
        except NotAdmitted as refusal:
            raise _predictor_error(refusal) from refusal


def _predictor_error(refusal: NotAdmitted) -> Denied | Overloaded | NotReady:
    message = str(refusal)
    if refusal.status == 503:  # noqa: PLR2004  # HTTP
        return NotReady(message)
    if refusal.status == 429:  # noqa: PLR2004  # HTTP
        return Overloaded(message)
    return Denied(message, status=refusal.status)
