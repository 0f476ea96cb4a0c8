"""Authentication of the predictor's requests, over HTTP and gRPC, by the platform's admission."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from toque.ray_apps.admission.admission import ANY_MODEL, Admission, Admitted, NotAdmitted, Rule
from toque.ray_apps.model_paths import models_path
from toque.ray_apps.predictor.protocol.errors import Denied, NotFound, NotReady, Overloaded, PredictorError
from toque.registry import DEFAULT_WORKSPACE, EVERY_WORKSPACE, InvalidInput, Limits, Principal, Role
from toque.registry.access import check_workspace

__all__ = ["INFER", "READ", "WORKSPACE", "Authenticator", "NoAuthentication", "TokenAuthenticator"]

INFER: Final = Rule((Role.caller,))
"""Rule of predictions."""
READ: Final = Rule((Role.caller, Role.viewer))
"""Rule of what describes a model: metadata, readiness, statistics."""
WORKSPACE: Final = b"x-toque-workspace"
"""Header or metadata by which a request names its workspace."""


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
        workspace: bytes | None = None,
    ) -> Admitted:
        """Admit the request, or raise its refusal; `release` the result once it is answered.

        model: that the request is for. what: method and path; client: address; both for the audit. workspace: that
        the request names, if any.
        Raises: Denied, NotFound for another workspace than the endpoint's, Overloaded, NotReady.
        """
        ...

    def limits_of(self, admitted: Admitted) -> tuple[tuple[str, Limits], ...]:
        """List the bounds that a request is under, by the name of whose they are."""
        ...


class NoAuthentication:
    """Admits every request, for platforms whose operator switched authentication off.

    workspace: of the predictor; None: the one that each request names, for the proxy of all.
    """

    def __init__(self, workspace: str | None = DEFAULT_WORKSPACE) -> None:
        self._workspace = workspace
        self._admitted = Admitted(Principal(name="anybody", grants=()), workspace or DEFAULT_WORKSPACE)

    async def admit(
        self,
        authorization: bytes | None,  # noqa: ARG002  # of the protocol, as all that follow
        rule: Rule = INFER,  # noqa: ARG002
        *,
        model: str | None = None,
        what: str = "",  # noqa: ARG002
        client: str = "",  # noqa: ARG002
        workspace: bytes | None = None,
    ) -> Admitted:
        """Admit the request, whatever its header says. Raises: NotFound for another workspace."""
        if workspace is None:
            return self._admitted
        if self._workspace is None:
            return replace(self._admitted, workspace=_named(workspace))
        _check_workspace(workspace, self._workspace, model)
        return self._admitted

    def limits_of(self, admitted: Admitted) -> tuple[tuple[str, Limits], ...]:  # noqa: ARG002
        """List no bounds: nobody is known."""
        return ()


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
        workspace: bytes | None = None,
    ) -> Admitted:
        """Admit the request if its Authorization header has a token with the grant that the rule requires.

        Raises: Denied (401 without a valid token, 403 without the grant); Overloaded beyond the token's or
            workspace's limits; NotFound if it names another workspace than the predictor's; NotReady if the store does not answer and the token is not known.
        """
        chosen = self._workspace
        if chosen is None and workspace is not None:
            chosen = workspace.decode("latin-1")
        try:
            admitted = await self._admission.admit(
                authorization, rule, what=what, workspace=chosen, model=model, client=client
            )
        except NotAdmitted as refusal:
            hint = await self._hint(authorization) if refusal.status == 403 else ""  # noqa: PLR2004  # HTTP
            raise _predictor_error(refusal, hint) from refusal
        if workspace is not None:
            try:
                _check_workspace(workspace, admitted.workspace, model)
            except NotFound:
                admitted.release()
                raise
        return admitted

    def limits_of(self, admitted: Admitted) -> tuple[tuple[str, Limits], ...]:
        """List the bounds of the request's token and workspace."""
        return self._admission.limits_of(admitted)

    async def _hint(self, authorization: bytes | None) -> str:
        """Where the models are of a caller who has no grant in this workspace."""
        principal = await self._admission.identify(authorization)
        reached = {grant.workspace for grant in principal.grants}
        if self._workspace is None or reached & {self._workspace, EVERY_WORKSPACE}:
            return ""
        return f"; its own models are below {', '.join(map(models_path, sorted(reached)))}"


def _named(workspace: bytes) -> str:
    try:
        return check_workspace(workspace.decode("latin-1"))
    except InvalidInput as error:
        raise NotFound(f"x-toque-workspace: {error}") from None


def _check_workspace(named: bytes, workspace: str, model: str | None) -> None:
    """Refuse a request that names another workspace than where it came to. Raises: NotFound, with the right path."""
    name = named.decode("latin-1")
    if name != workspace:
        path = f"{models_path(name[:64])}/{model if model and model != ANY_MODEL else ''}"
        raise NotFound(
            f"X-Toque-Workspace: this is workspace {workspace!r}; the path for {name[:64]!r} is {path}"
        )


def _predictor_error(refusal: NotAdmitted, hint: str) -> PredictorError:
    message = f"{refusal}{hint}"
    if refusal.status == 503:  # noqa: PLR2004  # HTTP
        return NotReady(message)
    if refusal.status == 429:  # noqa: PLR2004  # HTTP
        return Overloaded(message)
    return Denied(message, status=refusal.status)
