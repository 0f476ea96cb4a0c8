"""Record of one rollout: every look at its confidence sequence, what was decided, why and by whom; and its page.

Made from the journal alone, by the functions that decided: what it shows is what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.arguments import Model
from toque.functions.reporting.html import document, figure_html, new_figure, table
from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.evidence.sums import Evidence, MetricSums
from toque.functions.rollout.judge.interval import Improvement, improvement, metric_change
from toque.functions.rollout.judge.verdict import Decision, with_shared_alpha
from toque.functions.rollout.state import History, RolloutState, step
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Entry, Journal

if TYPE_CHECKING:
    import plotly.graph_objects as go

MAX_LOOKS = 400
RolloutNumber = Annotated[
    int | None,
    Field(
        ge=0,
        le=1_000_000_000,
        description=(
            "Number of the journal entry that began the rollout, "
            "as `rollout_status` tells; the newest unless given."
        ),
    ),
]
_ARM_COLOURS = ("#0b6e4f", "#2f6db0", "#8e5bb0", "#b0822f", "#b04a2f")
_FLOOR_COLOUR = "#c0392b"


class Gain(BaseModel):
    """Estimated reduction of the mean loss by one challenger; lower, upper: valid at every look, None where unbounded."""

    model_config = ConfigDict(frozen=True)

    version: int
    labels: int
    estimate: float
    lower: float | None
    upper: float | None


class Look(BaseModel):
    """One recorded look at a rollout. entry: its number in the journal."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: AwareDatetime
    stage: str
    action: str
    rule: str
    text: str
    gains: tuple[Gain, ...]


class Change(BaseModel):
    """Change of a rollout that a person, or the bookkeeping, made."""

    model_config = ConfigDict(frozen=True)

    entry: int
    at: AwareDatetime
    event: str
    reason: str
    actor: str


class RolloutRecord(BaseModel):
    """Record of one rollout from its journal. looks: oldest first, at most `MAX_LOOKS`; left_out: looks that held and are not among them."""

    model_config = ConfigDict(frozen=True)

    model: str
    state: RolloutState
    looks: tuple[Look, ...]
    left_out: int
    changes: tuple[Change, ...]


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def rollout_record(model: Model, rollout: RolloutNumber = None) -> RolloutRecord:
    """Give the looks, decisions and changes of one rollout of `model`; looks that only held are thinned out.

    Raises: RolloutError if no rollout began there.
    """
    used = context()
    entries = list(Journal(used.store, f"rollouts/{model}", actor=used.actor).entries())
    state, decisions, by_hand = read_rollout(entries, rollout)
    by_number = {entry.number: entry for entry in entries}
    kept = thinned(decisions)
    return RolloutRecord(
        model=model,
        state=state,
        looks=tuple(map(_look, kept)),
        left_out=len(decisions) - len(kept),
        changes=tuple(_change(by_number[int(str(row[0]))]) for row in by_hand),
    )


def thinned(decisions: Sequence[RolloutDecision], most: int = MAX_LOOKS) -> list[RolloutDecision]:
    """Keep every decision that changed something, the last one, and evenly so many others that `most` stay."""
    if len(decisions) <= most:
        return list(decisions)
    told = [each.decision.action != "hold" or each is decisions[-1] for each in decisions]
    every = math.ceil(len(decisions) / max(1, most - sum(told)))
    return [each for index, each in enumerate(decisions) if told[index] or index % every == 0]


def _look(one: RolloutDecision) -> Look:
    policy = with_shared_alpha(one.before.policy, one.before)
    evidence = {one.before.challenger: one.evidence} | one.evidence.rivals
    found = {version: improvement(each.loss, policy) for version, each in evidence.items()}
    return Look(
        entry=one.entry,
        at=one.at,
        stage=one.before.stage,
        action=one.decision.action,
        rule=one.decision.rule,
        text=one.decision.text,
        gains=tuple(
            Gain(
                version=version,
                labels=gain.labels,
                estimate=gain.estimate,
                lower=_finite(gain.lower),
                upper=_finite(gain.upper),
            )
            for version, gain in found.items()
            if gain is not None
        ),
    )


def _change(entry: Entry) -> Change:
    body = entry.body
    return Change(
        entry=entry.number,
        at=body["at"],
        event=body["event"],
        reason=body.get("reason") or body.get("note") or "",
        actor=entry.actor,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    """Recorded decision of a rollout, and the state before it."""

    entry: int
    at: datetime
    before: RolloutState
    decision: Decision
    evidence: Evidence


def read_rollout(
    entries: Iterable[Entry], rollout: int | None = None
) -> tuple[RolloutState, list[RolloutDecision], list[list[object]]]:
    """Read a rollout from the journal: its last state, its decisions, and what was done by hand.

    entries: the whole journal, from its first entry on. rollout: number of the entry that began it; None: the newest.
    Raises: RolloutError if no rollout began there.
    """
    history, last, decisions, by_hand = History(), None, list[RolloutDecision](), list[list[object]]()
    for entry in entries:
        before, history = history.current, step(history, entry)
        if entry.body["event"] == "started":
            if rollout is not None and last is not None:
                break
            decisions, by_hand = [], []
            last = history.current if rollout in (None, entry.number) else None
        if last is None or history.current is None:
            continue
        last = history.current
        at = datetime.fromisoformat(entry.body["at"])
        if entry.body["event"] == "decided" and before is not None:
            decisions.append(_judged(entry, at, before))
        else:
            sentences = entry.body.get("reason") or entry.body.get("note") or ""
            by_hand.append(
                [entry.number, f"{at:%Y-%m-%d %H:%M}", entry.body["event"], sentences, entry.actor]
            )
    if last is None:
        wanted = "any entry" if rollout is None else f"entry {rollout}"
        raise RolloutError(f"no rollout began at {wanted} of this journal; start one")
    return last, decisions, by_hand


def render_rollout(model: str, entries: Iterable[Entry], rollout: int | None = None) -> str:
    """Render the page as one HTML file; arguments and errors as of `read_rollout`."""
    state, decisions, by_hand = read_rollout(entries, rollout)
    versions = ", ".join(str(version) for version in state.versions)
    sections = [
        ("How much better, at every look at once", _sequence(state, decisions)),
        ("Why it stands where it stands", _findings(decisions)),
        ("What was decided", _decisions(decisions)),
        ("Done by hand, and bookkeeping", table(["entry", "when (UTC)", "what", "", "by"], by_hand)),
        ("The split, errors and latency", _counts(state, decisions)),
        ("Business metrics", _metrics(state, decisions)),
        ("The rules it was judged by", _rules(state)),
    ]
    title = f"{model}: version {versions} against {state.champion}, rollout {state.rollout}"
    return document(title, _summary(state, decisions), sections)


def _judged(entry: Entry, at: datetime, before: RolloutState) -> RolloutDecision:
    body = entry.body
    return RolloutDecision(
        entry=entry.number,
        at=at,
        before=before,
        decision=Decision.model_validate(body["decision"]),
        evidence=Evidence.model_validate(body["evidence"]),
    )


def _summary(state: RolloutState, decisions: Sequence[RolloutDecision]) -> list[str]:
    sentences = [
        f"Started {state.started_at:%Y-%m-%d %H:%M} UTC{f': {state.reason}' if state.reason else ''}. It stands at {state.stage}."
    ]
    if not decisions:
        return [*sentences, "Nothing was judged yet: no cohort has its labels."]
    last = decisions[-1]
    gain = _gains(last).get(last.decision.chosen or last.before.challenger)
    if gain is not None and math.isfinite(gain.lower):
        sentences.append(
            f"On {gain.labels:,} paired labels the challenger's mean loss is lower by {gain.estimate:.5f}; between "
            f"{gain.lower:.5f} and {gain.upper:.5f}, each bound true at this and all other looks with probability "
            f"{1 - with_shared_alpha(state.policy, state).alpha:.4g}."
        )
    sentences.append(
        f"Last decision (entry {last.entry}): {last.decision.action} by {last.decision.rule}. {last.decision.text}."
    )
    return sentences


def _gains(one: RolloutDecision) -> dict[int, Improvement]:
    """Compute the improvement of each challenger at a decision."""
    policy = with_shared_alpha(one.before.policy, one.before)
    evidence = {one.before.challenger: one.evidence} | one.evidence.rivals
    found = {version: improvement(each.loss, policy) for version, each in evidence.items()}
    return {version: gain for version, gain in found.items() if gain is not None}


def _sequence(state: RolloutState, decisions: Sequence[RolloutDecision]) -> str:
    looks = [(one.at, _gains(one)) for one in decisions]
    if not any(gains for _, gains in looks):
        return "<p>The loss is not judged yet.</p>"
    figure = new_figure()
    for number, version in enumerate(state.versions):
        mine = [(at, gains[version]) for at, gains in looks if version in gains]
        if mine:
            _band(figure, version, mine, _ARM_COLOURS[number % len(_ARM_COLOURS)])
    figure.add_hline(y=state.policy.min_effect, line={"color": _FLOOR_COLOUR, "dash": "dot", "width": 1})
    for one in decisions:
        if one.decision.action != "hold":
            figure.add_vline(x=one.at.timestamp() * 1_000, line={"color": "#999", "dash": "dot", "width": 1})
            figure.add_annotation(
                x=one.at, y=1, yref="paper", text=one.decision.action, showarrow=False, yanchor="bottom", font={"size": 11}
            )  # fmt: skip
    figure.update_yaxes(range=_shown([gain for _, gains in looks for gain in gains.values()]))
    legend = "<p>Above the dotted red line is what is worth a promotion; a whole band above it promotes, below zero stops.</p>"
    return figure_html(figure, "lower mean loss (nats or squares)") + legend


def _shown(gains: Sequence[Improvement]) -> list[float]:
    """Choose the range of the axis: all estimates, and bounds once they are narrower than the first."""
    estimates = [abs(gain.estimate) for gain in gains]
    half = [gain.upper - gain.estimate for gain in gains if math.isfinite(gain.upper)]
    reach = max(estimates) + (2.5 * float(np.median(half)) if half else 0.0)
    return [-1.1 * reach, 1.1 * reach]


def _band(
    figure: go.Figure, version: int, looks: Sequence[tuple[datetime, Improvement]], colour: str
) -> None:
    """Draw the estimate, and its bounds where they are finite."""
    group = {"legendgroup": str(version)}
    bounded = [(at, gain) for at, gain in looks if math.isfinite(gain.lower) and math.isfinite(gain.upper)]
    at = [when for when, _ in bounded]
    line = {"color": colour, "width": 0.5}
    lower, upper = ([getattr(gain, side) for _, gain in bounded] for side in ("lower", "upper"))
    figure.add_scatter(x=at, y=lower, name="lower bound", mode="lines", line=line, showlegend=False, **group)
    figure.add_scatter(
        x=at, y=upper, name="upper bound", mode="lines", line=line, fill="tonexty", opacity=0.3, showlegend=False, **group
    )  # fmt: skip
    figure.add_scatter(
        x=[when for when, _ in looks], y=[gain.estimate for _, gain in looks], name=f"version {version}",
        text=[f"{gain.labels:,} labels" for _, gain in looks], mode="lines+markers", line={"color": colour}, **group,
    )  # fmt: skip


def _findings(decisions: Sequence[RolloutDecision]) -> str:
    """List every finding of the last decision."""
    if not decisions:
        return table([], [])
    last = decisions[-1].decision
    rows = [
        [finding.rule, "" if finding.arm is None else finding.arm, "yes" if finding.fired else "", finding.text,
         _number(finding.statistic), _number(finding.threshold)]
        for finding in last.findings
    ]  # fmt: skip
    return table(
        ["rule", "version", "fired", "what it found", "statistic", "threshold"], rows, numbers_from=4
    )


def _decisions(decisions: Sequence[RolloutDecision]) -> str:
    """List the decisions, with the number of those that only held in between."""
    rows: list[list[object]] = []
    held = 0
    for one in decisions:
        if one.decision.action == "hold" and one is not decisions[-1]:
            held += 1
            continue
        rows.append(
            [
                one.entry,
                f"{one.at:%Y-%m-%d %H:%M}",
                one.before.stage,
                one.decision.action,
                one.decision.text,
                held,
            ]
        )
        held = 0
    return table(
        ["entry", "when (UTC)", "stage", "decision", "why", "looks before that held"], rows, numbers_from=5
    )


def _counts(state: RolloutState, decisions: Sequence[RolloutDecision]) -> str:
    if not decisions:
        return table([], [])
    found = decisions[-1].evidence
    rows: list[list[object]] = []
    for name, counts in (("shadow", found.shadow), ("canary", found.canary)):
        for side in ("champion", "challenger"):
            values = [getattr(counts, f"{side}{what}") for what in ("", "_errors", "_slow")]
            units = getattr(found.units, side) if name == "canary" else ""
            rows.append([name, side, *values, units])
    share = state.policy.canary_share if found.canary_share is None else found.canary_share
    note = f"<p>Declared share of the canary among what the two answer: {share:.4g}.</p>"
    return (
        table(["stage", "", "answers", "errors", "slow", "units of the split"], rows, numbers_from=2) + note
    )


def _metrics(state: RolloutState, decisions: Sequence[RolloutDecision]) -> str:
    if not state.policy.guardrails or not decisions:
        return "<p>None was asked for.</p>"
    policy = with_shared_alpha(state.policy, state)
    rows: list[list[object]] = []
    for guardrail in policy.guardrails:
        sums = decisions[-1].evidence.metrics.get(guardrail.name, MetricSums())
        change = metric_change(sums, guardrail, policy, policy.alpha)
        bounds: list[Any] = [None] * 3 if change is None else [change.estimate, change.lower, change.upper]
        rows.append(
            [guardrail.name, guardrail.better, *map(_number, bounds), _number(guardrail.margin), sums.champion_units,
             sums.challenger_units]
        )  # fmt: skip
    header = [
        "metric",
        "better",
        "change for the better",
        "at least",
        "at most",
        "margin",
        "champion units",
        "canary units",
    ]
    return table(header, rows, numbers_from=2)


def _rules(state: RolloutState) -> str:
    return table(["", ""], [[name, value] for name, value in state.policy.model_dump(mode="json").items()])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
