"""Models and their versions: summary, history, aliases with promotion and rollback, reviews, signatures, what lacks to go live."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from toque.functions.arguments import Model, Name, Number, Reason, Time, Version
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.registry import Damaged, Dependent, ModelState, ModelVersion, NotFound, Registry, TableSnapshot
from toque.registry.models.decisions import UNCHECKED
from toque.registry.models.traffic import CHAMPION, Arm

Alias = Annotated[Name, Field(description="Name of an alias of the model, such as champion.")]
NumberOrAlias = Annotated[Name, Field(description="Number of a version, or an alias that points to one.")]
ExpectedVersion = Annotated[
    Number | Literal["unchecked"] | None,
    Field(
        description="Version that the alias must point to now, null for none; otherwise nothing changes. Not checked unless given."
    ),
]
Override = Annotated[
    str,
    Field(
        max_length=2000,
        description="Reason of an emergency, by which an admin goes against the policy; recorded for ever.",
    ),
]
Comment = Annotated[
    str, Field(max_length=2000, description="What the reviewer found; it stands beside their name.")
]
OVERRIDE = {"override": "an override of {model}'s policy"}
_AHEAD = 20  # models that are read at once


class AuditResult(BaseModel):
    """How much of a model was read and found intact; `damaged` names the first thing that was not, if any."""

    entries: int = 0
    blobs: int = 0
    size_bytes: int = 0
    damaged: str | None = None


class AliasTarget(BaseModel):
    """Version that an alias of a model points to; null if it points to no version."""

    model: str
    alias: str
    version: int | None


class ModelCard(BaseModel):
    """Model card of a version, in Markdown."""

    card: str


class SignatureBundle(BaseModel):
    """A signature of a version's files, in the bundle format of OpenSSF model signing."""

    bundle: str


class Unmet(BaseModel):
    """Conditions of the model's policy that a version does not meet, and files with code that nobody accepted."""

    conditions: list[str]
    code_files: list[str]


class Waiting(BaseModel):
    """Version that meets its model's policy but for approvals. champion: the version that is live, if any."""

    model: str
    version: int
    champion: int | None
    author: str
    created_at: datetime
    unmet: list[str]


class DependentVersion(Dependent):
    """A version that was made from something, with all arms of its model's traffic that it answers."""

    arms: list[str]
    created_at: datetime


@function(
    route="POST /models/{model}/audit",
    command="models audit MODEL",
    view=View(
        text="{model}: {entries} entries and {blobs} files ({size_bytes} bytes) are as they were written",
        failure="damaged: {model} is damaged: {damaged}",
    ),
)
def audit_model(model: Model) -> AuditResult:
    """Verify the model's hash chain and every file and signature, which reads all of them."""
    try:
        return AuditResult(**_registry().verify(model).model_dump())
    except Damaged as damage:
        return AuditResult(damaged=str(damage))


@function(
    route="GET /models/{model}/history",
    role="viewer",
    command="models history MODEL",
    view=View(
        columns="entry: number | at | actor | change: body.kind? | version: body.version? as {version} | reason: body.reason?",
        wide="all that was written: body",
        texts="reason",
        newest="number",
        empty="nothing was changed of {model}",
    ),
)
def model_history(
    model: Model,
    limit: Annotated[int, Field(ge=1, le=10_000, description="Number of entries at most.")] = 100,
) -> list[dict[str, Any]]:
    """List the latest entries of the model's journal, oldest first: who changed what, when and why."""
    return [entry.to_json() for entry in _registry().history(model, last=limit)][-limit:]


@function(route="GET /models/{model}/aliases/{alias}", role="viewer")
def get_alias(
    model: Model,
    alias: Alias,
    at: Annotated[
        Time | None, Field(description="Past moment, with an offset from UTC; now unless given.")
    ] = None,
) -> AliasTarget:
    """Get the version that an alias points to, now or at a past moment; null if it points to no version."""
    state = _registry().model_at(model, at) if at else _registry().get_model(model)
    return AliasTarget(model=model, alias=alias, version=state.aliases.get(alias))


@function(route="PUT /models/{model}/aliases/{alias}", admin_for=OVERRIDE)
def set_alias(
    model: Model,
    alias: Alias,
    version: Version,
    expected: ExpectedVersion = UNCHECKED,
    reason: Reason = "",
    override: Override = "",
) -> ModelVersion:
    """Point an alias to a version; 409 if it is not at the expected version, or the policy is not met.

    An override of the policy needs the role admin.
    """
    return _registry().set_alias(model, alias, version, expected=expected, reason=reason, override=override)


@function(
    route="POST /models/{model}/promote",
    admin_for=OVERRIDE,
    command="models promote MODEL VERSION",
    view=View(text="{model}@{version} is the champion"),
)
def promote_version(
    model: Model,
    version: Version,
    expected: ExpectedVersion = UNCHECKED,
    reason: Reason = "",
    override: Override = "",
) -> ModelVersion:
    """Make a version the champion, and end the model's canaries, shadows and rules to a version, in one change.

    An override of the policy needs the role admin.
    """
    return _registry().promote(model, version, expected=expected, reason=reason, override=override)


@function(route="POST /models/{model}/aliases/{alias}/rollback")
def roll_back_alias(
    model: Model, alias: Alias, expected: ExpectedVersion = UNCHECKED, reason: Reason = ""
) -> ModelVersion:
    """Point an alias back to its previous version; 409 if it is not at the expected one."""
    return _registry().rollback(model, alias, expected=expected, reason=reason)


@function(route="GET /models/{model}/versions", role="viewer")
def list_versions(
    model: Model,
    before: Annotated[
        Number | None,
        Field(description="Only versions with a lower number, so that pages lead back in time."),
    ] = None,
    limit: Annotated[
        int | None, Field(ge=1, le=10_000, description="Only so many, the newest; all unless given.")
    ] = None,
) -> list[ModelVersion]:
    """List the versions that are not deleted, oldest first."""
    every = _registry().list_versions(model)
    return [each for each in every if before is None or each.version < before][-limit if limit else 0 :]


@function(route="GET /models/{model}/versions/{version}", role="viewer")
def get_version(model: Model, version: NumberOrAlias) -> ModelVersion:
    """Get a version by number or alias: signature, metrics, lineage, approvals, gates."""
    return _registry().get_version(model, _number_or_alias(version))


@function(
    route="GET /models/{model}/versions/{version}/card",
    role="viewer",
    command="models card MODEL VERSION",
    view=View(text="{card}"),
)
def model_card(model: Model, version: NumberOrAlias) -> ModelCard:
    """Get the model card of a version in Markdown, rendered from its record."""
    return ModelCard(card=_registry().card(model, _number_or_alias(version)))


@function(
    route="POST /models/{model}/versions/{version}/approve",
    role="approver",
    command="models approve MODEL VERSION",
    view=View(text="{model}@{version}: approved"),
)
def approve_version(
    model: Model,
    version: Version,
    comment: Comment = "",
    accept_code: Annotated[
        list[str],
        Field(
            max_length=1000, description="Paths of files that can execute code, which you read and accept."
        ),
    ] = [],  # noqa: B006  # read only
) -> ModelVersion:
    """Approve a version in the caller's name."""
    return _registry().approve(model, version, comment=comment, accept_code=accept_code)


@function(
    route="POST /models/{model}/versions/{version}/reject",
    role="approver",
    command="models reject MODEL VERSION",
    view=View(text="{model}@{version}: rejected"),
)
def reject_version(model: Model, version: Version, comment: Comment = "") -> ModelVersion:
    """Reject a version in the caller's name: no alias can point to it until it is approved."""
    return _registry().reject(model, version, comment=comment)


@function(route="POST /models/{model}/versions/{version}/signatures")
def add_signature(
    model: Model,
    version: Version,
    bundle: Annotated[
        str, Field(description="Signature made elsewhere, a bundle of the OpenSSF model-signing format.")
    ],
    public_key: Annotated[str, Field(description="Public key that it is checked with, in PEM.")],
) -> ModelVersion:
    """Store a signature of a version's files; 409 if that key did not sign these files."""
    return _registry().add_signature(model, version, bundle.encode(), public_key)


@function(route="GET /models/{model}/versions/{version}/signatures/{signer}", role="viewer")
def get_signature(
    model: Model,
    version: Version,
    signer: Annotated[Name, Field(description="Fingerprint of the key that signed.")],
) -> SignatureBundle:
    """Get a signature's bundle by the fingerprint of its key, for the caller to verify."""
    registry = _registry()
    for mark in registry.get_version(model, version).signatures:
        if mark.signer == signer:
            return SignatureBundle(bundle=registry.signature(model, version, mark.sha256).decode())
    raise NotFound(f"{model}@{version} has no signature of the key {signer}")


@function(route="GET /models/{model}/versions/{version}/unmet", role="viewer")
def unmet_conditions(model: Model, version: Version) -> Unmet:
    """Tell what a version lacks before it may become the champion."""
    registry = _registry()
    accepted = set(registry.accepted_code(model, version))
    code = registry.get_version(model, version).code_files
    return Unmet(
        conditions=list(registry.unmet(model, version)),
        code_files=[path for path in code if path not in accepted],
    )


@function(route="GET /approvals", role="viewer")
def versions_to_approve(
    after: Annotated[
        str,
        Field(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,127}@[0-9]{1,10})?$",
            description="Last one of the page before, as `model@version`.",
        ),
    ] = "",
    limit: Annotated[
        int | None, Field(ge=1, le=10_000, description="Number of versions at most; all unless given.")
    ] = None,
) -> list[Waiting]:
    """List the versions, newer than their model's champion, that lack nothing but approvals: by model, each model's newest first.

    With `limit`, a page reads the models that it needs.
    """
    registry = _registry()
    model, _, number = after.partition("@")
    rest = _waiting(registry, model, before=int(number)) if model else ()
    others = (each for name in _models(registry, model) for each in _waiting(registry, name))
    return list(islice(chain(rest, others), limit))


@function(
    http=True,
    role="viewer",
    in_thread=True,
    command="models made-from SOURCE",
    view=View(
        columns="model | version | aliases | serves as: arms | created: created_at",
        newest="created_at",
        empty="no version was made from {source}",
    ),
)
def versions_made_from(
    source: Annotated[
        str,
        Field(
            description="A table as TABLE@VERSION, the id of a run, or a digest of code or a feature view."
        ),
    ],
) -> list[DependentVersion]:
    """List the versions that depend on a piece of data or code."""
    name, at, number = source.rpartition("@")
    piece = TableSnapshot(name=name, version=int(number)) if at and number.isdecimal() else source
    found = _registry().dependents(piece)
    states = {each.model: _registry().get_model(each.model) for each in found}
    return [
        DependentVersion(
            **each.model_dump(),
            arms=[arm.name for arm in _arms(states[each.model]) if arm.version == each.version],
            created_at=states[each.model].versions[each.version].created_at,
        )
        for each in found
    ]


def _registry() -> Registry:
    return context().registry()


def _arms(state: ModelState) -> tuple[Arm, ...]:
    return state.traffic.arms if state.traffic else ()


def _number_or_alias(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _models(registry: Registry, after: str) -> Iterator[str]:
    """Iterate over the names of the models after one, reading a few ahead."""
    while names := registry.list_models(after=after, limit=_AHEAD):
        yield from names
        after = names[-1]


def _waiting(registry: Registry, name: str, *, before: int | None = None) -> Iterator[Waiting]:
    state: ModelState = registry.follow(name).refresh()
    champion = state.aliases.get(CHAMPION)
    if CHAMPION not in state.policy.guarded:
        return
    unapproved = state.policy.model_copy(update={"approvals": 0})
    for number in sorted(state.versions, reverse=True):
        if number <= (champion or 0):
            return
        version = state.versions[number]
        if version.status != "READY" or (before is not None and number >= before):
            continue
        unmet = version.missing(state.policy)
        if not unmet:
            continue
        # Approvals under this policy stand although its copy has another digest: only gates and signatures are left.
        if not version.missing(unapproved):
            yield Waiting(
                model=name,
                version=number,
                champion=champion,
                author=version.author,
                created_at=version.created_at,
                unmet=list(unmet),
            )
