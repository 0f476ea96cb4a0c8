"""Roles and the grants that give them in workspaces, the principals who hold grants, and the workspaces themselves.

A workspace is a team's part of a platform, a part of the store with everything that belongs to the team. The workspace
`default` is the platform's store itself, so a store without workspaces is one with a single team. Any other one lies
below `workspaces/{name}`: models, runs, features, invocations, predictions, labels, reports and schedules of different
workspaces never meet, and a bucket's policy can hold them apart by prefix.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from toque.registry.errors import InvalidInput
from toque.registry.names import check_name

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore


DEFAULT_WORKSPACE: Final = "default"
"""Workspace that every platform has; a team that is alone never names it."""
EVERY_WORKSPACE: Final = "*"
"""Stands in a grant for all workspaces, those made later included."""
_WORKSPACE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_WORKSPACES_FOLDER = "workspaces"
ServiceTier = Literal["flex", "default", "priority"]
SERVICE_TIERS: Final[tuple[ServiceTier, ...]] = ("flex", "default", "priority")
"""From the lowest: which of the requests that wait for a language model's engine goes first."""


class Role(Enum):
    """What a grant permits: read, infer, send labels, run functions and move traffic, approve, or everything.

    caller and labeller see nothing of what others did. operator has all three roles before it, approver those of
    an operator, admin every role. `predictor` is the earlier name of caller.
    """

    viewer = "viewer"
    caller = "caller"
    labeller = "labeller"
    operator = "operator"
    approver = "approver"
    admin = "admin"
    predictor = "caller"  # noqa: PIE796  # an alias is meant

    __hash__ = object.__hash__  # on every request's path, and Enum's own takes three times as long

    @classmethod
    def parse(cls, text: str | Role) -> Self:
        """Parse the name of a role. Raises: InvalidInput, with the names there are."""
        if isinstance(text, Role):
            return cls(text)
        try:
            return cls[text]
        except KeyError as error:
            raise InvalidInput(f"role={text!r}: there are {', '.join(role.name for role in cls)}") from error

    @property
    def includes(self) -> frozenset[Role]:
        """Roles that a grant of this one has too, itself among them."""
        return _INCLUDED[self]


_BASIC = frozenset({Role.viewer, Role.caller, Role.labeller})
_INCLUDED: Final = {
    Role.viewer: frozenset({Role.viewer}),
    Role.caller: frozenset({Role.caller}),
    Role.labeller: frozenset({Role.labeller}),
    Role.operator: _BASIC | {Role.operator},
    Role.approver: _BASIC | {Role.operator, Role.approver},
    Role.admin: frozenset(Role),
}


class Grant(BaseModel):
    """A role in a workspace, for one model of it or for everything there.

    workspace: its name, or "*" for all workspaces. model: the only model that the grant reaches; None: no restriction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    workspace: str = DEFAULT_WORKSPACE
    model: str | None = None

    @field_validator("role", mode="before")
    @classmethod
    def _role(cls, value: Any) -> Role:
        try:
            return Role.parse(value)
        except InvalidInput as error:
            raise ValueError(str(error)) from error

    @field_serializer("role")
    def _role_name(self, role: Role) -> str:
        return role.name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.workspace != EVERY_WORKSPACE:
            check_workspace(self.workspace)
        if self.model is not None:
            check_name(self.model, what="model")
            if self.role is Role.labeller:
                raise ValueError(
                    f"model={self.model!r}: labels name a prediction and no model; leave the model out"
                )
        return self

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Parse `role`, `role:workspace` or `role:workspace:model`. Raises: InvalidInput."""
        parts = text.split(":")
        names = ("role", "workspace", "model")
        if len(parts) > len(names) or not all(parts):
            raise InvalidInput(f"grant={text!r}: write role, role:workspace or role:workspace:model")
        return make_grant(**dict(zip(names, parts, strict=False)))

    def allows(self, role: Role, workspace: str, model: str | None = None) -> bool:
        """Whether the grant permits what `role` does in `workspace`, to `model` or, None, to everything there."""
        return (
            role in _INCLUDED[self.role]
            and self.workspace in (workspace, EVERY_WORKSPACE)
            and (self.model is None or self.model == model)
        )

    def covers(self, other: Grant) -> bool:
        """Whether the grant permits all that `other` does."""
        return self.allows(other.role, other.workspace, other.model)

    def __str__(self) -> str:
        return f"{self.role.name}:{self.workspace}" + (f":{self.model}" if self.model else "")


def make_grant(role: str | Role, workspace: str = DEFAULT_WORKSPACE, model: str | None = None) -> Grant:
    """Make a grant of a role in a workspace. Raises: InvalidInput, naming the field."""
    try:
        return Grant(role=Role.parse(role), workspace=workspace, model=model)
    except ValueError as error:
        raise InvalidInput(f"grant: {error}") from error


def check_workspace(name: str) -> str:
    """Return `name` if it may name a workspace. Raises: InvalidInput, with the rule."""
    if not isinstance(name, str) or not _WORKSPACE.match(name):
        raise InvalidInput(
            f"workspace={name!r} is not a name of a workspace: 1 to 63 lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit"
        )
    return name


class Limits(BaseModel):
    """Bounds on the requests of a token or workspace at one replica of a door."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_per_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Requests a second on average, a second's worth at once; no bound unless given.",
    )
    max_in_flight: int | None = Field(
        default=None, ge=1, description="Requests at the same time; no bound unless given."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda bound: bound is None,
        description=(
            "Tokens of language models a minute, of prompts and answers together, a minute's worth at once; "
            "no bound unless given."
        ),
    )
    service_tier: ServiceTier | None = Field(
        default=None,
        exclude_if=lambda bound: bound is None,
        description=(
            "Highest tier that a request to a language model may ask for; "
            "`default` if neither the token nor the workspace has one."
        ),
    )

    @property
    def unbounded(self) -> bool:
        """Whether there is no bound on requests; that on tokens is counted where they are."""
        return self.rate_per_s is None and self.max_in_flight is None


UNLIMITED: Final = Limits()


class Principal(BaseModel):
    """Identity behind a request, with the grants that it holds.

    token: id of the token, or None for an identity of an OIDC issuer.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    grants: tuple[Grant, ...]
    token: str | None = None
    limits: Limits = UNLIMITED

    def may(self, role: Role | str, workspace: str = DEFAULT_WORKSPACE, *, model: str | None = None) -> bool:
        """Whether a grant permits what `role` does in `workspace`, to `model` or, None, to everything there."""
        wanted = role if isinstance(role, Role) else Role.parse(role)
        for grant in self.grants:  # noqa: SIM110  # on every request's path: a generator costs twice as much
            if grant.allows(wanted, workspace, model):
                return True
        return False

    def may_give(self, grants: tuple[Grant, ...]) -> bool:
        """Whether the principal is an admin wherever `grants` reach, and so may give them to others."""
        return all(self.may(Role.admin, grant.workspace, model=grant.model) for grant in grants)

    @property
    def workspace(self) -> str:
        """Workspace of requests that name none: the only one that the grants reach, else the default one."""
        named = {grant.workspace for grant in self.grants}
        return next(iter(named)) if len(named) == 1 and EVERY_WORKSPACE not in named else DEFAULT_WORKSPACE

    @property
    def roles(self) -> str:
        """Grants as text, for messages."""
        return ", ".join(map(str, self.grants)) or "no grant"


class QueueShare(BaseModel):
    """What the experiments of a workspace may take of the cluster at a time; None: no limit.

    share: weight of the workspace among all, in the fair share of the cards; cpus, gpus, at_once: of all its experiments together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(default=1.0, gt=0, le=1_000)
    cpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpus: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    at_once: int | None = Field(default=None, ge=0)


class Workspace(BaseModel):
    """A workspace of the platform. limits: bounds on the requests of all its callers together; queue: on its experiments."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    limits: Limits = UNLIMITED
    queue: QueueShare = QueueShare()
    created_by: str = ""
    created_at: datetime | None = None


def workspace_store(store: ObjectStore, name: str) -> ObjectStore:
    """Open the part of the platform's store that belongs to a workspace. Raises: InvalidInput."""
    check_workspace(name)
    return store if name == DEFAULT_WORKSPACE else store.within(f"{_WORKSPACES_FOLDER}/{name}")


def workspace_url(platform_url: str, name: str) -> str:
    """Derive the URL of a workspace's store from that of the platform's. Raises: InvalidInput."""
    check_workspace(name)
    if name == DEFAULT_WORKSPACE:
        return platform_url
    parts = urlsplit(platform_url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{_WORKSPACES_FOLDER}/{name}"))


def split_workspace_url(url: str) -> tuple[str, str]:
    """Split a store's URL into that of the platform and the name of the workspace."""
    parts = urlsplit(url)
    above, _, name = parts.path.rstrip("/").rpartition("/")
    if not above.endswith(f"/{_WORKSPACES_FOLDER}") or not name:
        return url, DEFAULT_WORKSPACE
    return urlunsplit(parts._replace(path=above.removesuffix(f"/{_WORKSPACES_FOLDER}"))), name
