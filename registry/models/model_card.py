"""Model cards in Markdown, rendered from what is recorded of a version."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from toque.registry.models.signature import TensorSpec
from toque.registry.models.state import ModelState
from toque.registry.models.versions import Approval, ModelVersion
from toque.registry.times import to_text


def model_card(state: ModelState, version: ModelVersion) -> str:
    """Render the card of `version`, which belongs to the model `state`."""
    uses = ", ".join(state.uses(version.version)) or "nothing points to it"
    head = [
        f"# {version.model}@{version.version}",
        *(text for text in (state.description, version.description) if text),
        (
            f"{version.status}, {uses}. Registered by {version.author} at {to_text(version.created_at)}; "
            f"digest `{version.digest[:16]}`, {version.size_bytes:,} bytes in {len(version.files)} files."
        ),
    ]
    sections = [
        ("Metrics", _table(("metric", "value"), ((n, f"{v:.6g}") for n, v in version.metrics.items()))),
        ("Inputs and outputs", _signature(version)),
        ("Gates, approvals and signatures", _gates_and_approvals(state, version)),
        ("Made from", _lineage(version)),
        ("Tags", _table(("tag", "value"), version.tags.items())),
    ]
    body = [f"## {title}\n\n{text}" for title, text in sections if text]
    return "\n\n".join([*head, *body]) + "\n"


def _signature(version: ModelVersion) -> str:
    if version.signature is None:
        return ""
    specs = [("in", spec) for spec in version.signature.inputs] + [
        ("out", spec) for spec in version.signature.outputs
    ]
    return _table(("", "tensor", "type", "shape", "columns"), ((side, *_spec(spec)) for side, spec in specs))


def _spec(spec: TensorSpec) -> tuple[str, str, str, str]:
    return spec.name, spec.datatype, str(spec.shape), ", ".join(spec.columns or ())


def _gates_and_approvals(state: ModelState, version: ModelVersion) -> str:
    lines = (
        [f"- the model's policy is `{state.policy.digest[:16]}`"]
        if version.gates or version.approvals
        else []
    )
    lines += [
        f"- gate {gate.name}: {'passed' if gate.passed else 'FAILED'}{' (recorded by hand)' if gate.by_hand else ''} "
        f"({gate.actor}, {to_text(gate.at)}, policy `{gate.policy[:16]}`)"
        for gate in version.gates.values()
    ]
    lines += [_review(review) for review in version.approvals]
    lines += [
        f"- signed by key `{mark.signer[:16]}` ({mark.actor}, {to_text(mark.at)})"
        for mark in version.signatures
    ]
    lines += [
        f"- OVERRIDE by {mark.actor} at {to_text(mark.at)}: {mark.reason} (against: {'; '.join(mark.broken)})"
        for mark in version.overrides
    ]
    return "\n".join(lines)


def _review(review: Approval) -> str:
    verdict = "approved" if review.approved else "REJECTED"
    how = " AUTOMATICALLY" if review.automatic else ""
    code = f", code accepted: {', '.join(review.accept_code)}" if review.accept_code else ""
    text = f"- {verdict}{how} by {review.actor} at {to_text(review.at)}, policy `{review.policy[:16]}`{code} {review.comment}"
    return text.rstrip()


def _lineage(version: ModelVersion) -> str:
    lineage = version.lineage
    lines = [
        *([f"- run {lineage.run}"] if lineage.run else []),
        *(f"- table {snapshot}" for snapshot in lineage.datasets),
        *(f"- feature view {view}, definition `{digest[:16]}`" for view, digest in lineage.features.items()),
        *([f"- code `{lineage.code[:16]}`"] if lineage.code else []),
        *([f"- parent version {lineage.parent}"] if lineage.parent else []),
    ]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *lines])
