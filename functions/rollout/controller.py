"""Controller of one model's rollouts: start, tick, pause, end by hand, and explain; all state is in the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from toque.functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from toque.functions.rollout.evidence.cohort_sums import ReadOutcomes, cohort_due, no_metrics
from toque.functions.rollout.evidence.live import ReadLive
from toque.functions.rollout.evidence.metrics import ReadMetric
from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.evidence_reader import EvidenceReader
from toque.functions.rollout.explain import Explanation, explain
from toque.functions.rollout.judge.decide import LIVE_RULES, Action, Decision, Finding, decide
from toque.functions.rollout.judge.slo import slo_sums, spent_budget
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import Budget, History, RolloutState, Stage, budget, step, within_budget
from toque.functions.rollout.status import RolloutStatus, TickResult, ended_status, open_status, tick_result
from toque.functions.rollout.traffic import (
    CurrentTraffic,
    TrafficControl,
    apply_decided,
    champion_of,
    check_promotion,
    enforce,
    is_applied,
    put_in_place,
    release_layer,
    reserve_units,
    settle_promotion,
    split_by_hand,
    unusable_reason,
)
from toque.registry import Entry, Fold, Journal, ObjectStore

_NEXT_STAGE: dict[Action, Stage] = {
    "advance": "canary",
    "promote": "promoted",
    "roll_back": "rolled_back",
    "inconclusive": "inconclusive",
}
_LETS_THROUGH: tuple[Action, ...] = ("advance", "ramp", "promote")
_LOG_EVERY = timedelta(
    minutes=1
)  # between readings of the log for a challenger that the live counts would let through
_logger = logging.getLogger(__name__)
_ATTEMPTS = 8  # to end a rollout by hand while ticks write, too

_Judge = Callable[[RolloutState, CurrentTraffic, datetime, dict[int, str]], tuple[Evidence, Decision]]


def rollout_journal(
    model: str, *, store: ObjectStore, clock: Callable[[], datetime], actor: str
) -> Fold[History]:
    """Open the journal of a model's rollouts."""
    return Fold(
        Journal(store, f"rollouts/{model}", actor=actor, clock=clock),
        History(),
        step,
        encode=lambda history: history.model_dump(mode="json"),
        decode=History.model_validate,
    )


class Rollouts:
    """Controller of the rollouts of `model`; each method reads the state anew and appends at most one journal entry.

    read: logged predictions with labels, unlabelled ones included, predicted in [start, end).
    read_metric: the tables of business metrics, where a policy's guardrails name some. read_live: counts of the last minutes;
    None: nobody counts. clock: the platform's time.
    """

    def __init__(
        self,
        model: str,
        *,
        store: ObjectStore,
        registry: TrafficControl,
        read: ReadOutcomes,
        clock: Callable[[], datetime],
        actor: str,
        read_metric: ReadMetric = no_metrics,
        read_live: ReadLive | None = None,
    ) -> None:
        self.model = model
        self._store = store
        self._registry = registry
        self._read = read
        self._read_metric, self._read_live = read_metric, read_live
        self._log_read_at: datetime | None = None
        self._clock = clock
        self._fold = rollout_journal(model, store=store, clock=clock, actor=actor)

    def history(self) -> History:
        """Return the newest rollout and how the last ones ended."""
        return self._fold.refresh()

    def last_known(self) -> History:
        """Return the history as it was last read, without reading."""
        return self._fold.state

    def entries(self) -> list[Entry]:
        """Return the whole journal, oldest entry first."""
        return list(self._fold.journal.entries())

    def start(
        self, challenger: int, policy: RolloutPolicy, *, reason: str, rivals: Sequence[int] = ()
    ) -> RolloutState:
        """Begin a rollout in shadow; starting the same challenger again while it is under way changes nothing.

        rivals: further challengers, shadows of the same requests; the best goes on to the canary alone.
        Raises: RolloutActive while another challenger is under way; RolloutError if one cannot be served, or the budget of
        wrong promotions, or an error budget, is spent.
        """
        self._finish_end()
        champion = champion_of(self._registry.traffic(self.model))
        for version in (challenger, *rivals):
            self._check_start(version, champion)
        spent = spent_budget(policy, slo_sums(policy.slos, self._store, self.model, self._clock()))
        if spent is not None:
            raise RolloutError(f"{self.model}: {spent}; wait until there is room for a mistake")
        if len({challenger, *rivals}) <= len(rivals):
            raise RolloutError(f"{self.model}: {[challenger, *rivals]} names a version twice; name each once")
        before = self.history()
        self._refuse_another(before, (challenger, *rivals))
        if before.open is None:
            reserve_units(self._registry, self.model, policy)
        traffic = self._registry.traffic(self.model)

        def begin(history: History) -> dict[str, Any] | None:
            self._refuse_another(history, (challenger, *rivals))
            if history.open is not None:
                return None
            now = self._clock()
            return {
                "event": "started",
                "at": now.isoformat(),
                "champion": champion,
                "challenger": challenger,
                "rivals": list(rivals),
                "policy": self._affordable(policy, history, now).model_dump(mode="json"),
                "traffic_entry": traffic.entry,
                "reason": reason,
            }

        try:
            self._fold.transact(begin)
        except RolloutError:
            release_layer(self._registry, self.model, policy)
            raise
        state = self._current()
        apply_decided(self._registry, self.model, state)
        return state

    def _refuse_another(self, history: History, versions: tuple[int, ...]) -> None:
        """Refuse to start while other versions are under way. Raises: RolloutActive."""
        under_way = history.open
        if under_way is not None and under_way.versions != versions:
            raise RolloutActive(
                f"{self.model}: rollout {under_way.rollout} of version {under_way.challenger} is in {under_way.stage}; "
                "wait for its end or abort it"
            )

    def budget(self, policy: RolloutPolicy) -> Budget:
        """Sum the alpha of the past year's rollouts, and say what a rollout that starts now would get."""
        return budget(self.history(), policy, self._clock())

    def _affordable(self, policy: RolloutPolicy, history: History, now: datetime) -> RolloutPolicy:
        try:
            return within_budget(policy, history, now)
        except ValueError as error:
            raise RolloutError(f"{self.model}: {error}") from error

    def tick(self) -> TickResult:
        """Run one step: finish what a killed tick left undone, judge, record, and change the traffic."""
        return self._tick(self._judge)

    def tick_live(self) -> TickResult:
        """Run one step by what is known of the last minutes, which is cheap enough for every ten seconds.

        What these minutes would let through is judged with the log and the labels, too, before it goes on; and so is a canary
        with business metrics, once for each cohort whose labels have come.
        """
        return self._tick(self._judge_live)

    def _tick(self, judge: _Judge) -> TickResult:
        state = self._fold.refresh().current
        if state is None or state.settled:
            return TickResult(model=self.model)
        if not state.is_open:
            return self._settle(state)
        traffic = self._registry.traffic(self.model)
        problems = (
            {} if is_applied(traffic, state) else put_in_place(self._registry, self.model, state, traffic)
        )
        now = self._clock()
        traffic = self._registry.traffic(self.model)
        share = split_by_hand(traffic, state)
        if share is not None and not problems:
            return self._begin_split(state, traffic, share, now)
        evidence, decision = judge(state, traffic, now, problems)
        return self._record(state, evidence, decision, traffic.entry, now)

    def _begin_split(
        self, state: RolloutState, traffic: CurrentTraffic, share: float, now: datetime
    ) -> TickResult:
        """Record that the split was set by hand: its counts begin now, and those of the split before are not added to them."""
        text = f"the split was set by hand: of what champion and canary answer it has {share:.2%}; its counts begin now"
        body = {
            "event": "split",
            "at": now.isoformat(),
            "share": share,
            "traffic_entry": traffic.entry,
            "reason": text,
        }
        entry = self._fold.transact(lambda history: body if history.current == state else None)
        return TickResult(
            model=self.model,
            rollout=state.rollout,
            challenger=state.challenger,
            stage=state.stage,
            rule="split",
            text=text,
            labels=state.judged_labels,
            entry=None if entry is None else entry.number,
        )

    def _judge(
        self, state: RolloutState, traffic: CurrentTraffic, now: datetime, problems: dict[int, str]
    ) -> tuple[Evidence, Decision]:
        evidence = self._observe(state, traffic, now, problems)
        return evidence, decide(state, evidence, state.policy, now)

    def _judge_live(
        self, state: RolloutState, traffic: CurrentTraffic, now: datetime, problems: dict[int, str]
    ) -> tuple[Evidence, Decision]:
        evidence = self._reader().live(state, traffic, self._unusable(state, problems), now)
        decision = decide(state, evidence, state.policy, now, rules=LIVE_RULES)
        if decision.action not in _LETS_THROUGH and not self._has_new_metrics(state, decision, now):
            return evidence, decision
        if self._log_read_at is not None and now - self._log_read_at < _LOG_EVERY:
            return evidence, Decision(action="hold", rule="undecided", findings=decision.findings)
        self._log_read_at = now
        return self._judge(state, traffic, now, problems)

    def _has_new_metrics(self, state: RolloutState, decision: Decision, now: datetime) -> bool:
        """Whether business metrics of a cohort have become due since the log was last read."""
        if decision.action != "hold" or state.stage != "canary" or not state.policy.guardrails:
            return False
        read_at = self._log_read_at
        return read_at is None or cohort_due(read_at, state.policy) != cohort_due(now, state.policy)

    def status(self) -> RolloutStatus:
        """Report how the newest rollout stands and what a tick would do now, without deciding. Raises: NoRollout."""
        state, now = self._current(), self._clock()
        traffic = self._registry.traffic(self.model)
        if not state.is_open:
            return ended_status(self.model, state, self._fold.state, traffic, now)
        return open_status(self.model, state, self._observe(state, traffic, now, {}), traffic, now)

    def pause(self, *, reason: str) -> RolloutState:
        """Stop advancing and promoting, while the guardrails go on. Raises: NoRollout."""
        return self._by_hand("paused", reason)

    def resume(self, *, reason: str) -> RolloutState:
        """Go on after a pause, with the stage's time started anew. Raises: NoRollout."""
        return self._by_hand("resumed", reason)

    def end(self, action: Action, *, reason: str) -> RolloutState:
        """End the rollout by hand with "promote", "roll_back" or "inconclusive".

        Raises: NoRollout, once the traffic is as the last end left it; Refused; RolloutError.
        """
        if action not in ("promote", "roll_back", "inconclusive"):
            raise RolloutError(f"action {action!r} ends nothing; use promote, roll_back or inconclusive")
        self._finish_end()
        for _ in range(_ATTEMPTS):
            state = self._open()
            now = self._clock()
            traffic = self._registry.traffic(self.model)
            if action == "promote":
                check_promotion(self._registry, self.model, state, traffic)
            evidence = self._evidence_at_end(state, traffic, now, action)
            by_hand = Finding(rule="by_hand", fired=True, text=reason)
            decision = Decision(action=action, rule="by_hand", findings=(by_hand,))
            if self._record(state, evidence, decision, traffic.entry, now).entry is not None:
                return self._current()
        raise RolloutError(f"{self.model}: ticks were first {_ATTEMPTS} times; nothing was ended, try again")

    def _evidence_at_end(
        self, state: RolloutState, traffic: CurrentTraffic, now: datetime, action: Action
    ) -> Evidence:
        """Read the evidence on which a person ends the rollout; empty where it cannot be read, unless they promote."""
        try:
            return self._observe(state, traffic, now, {})
        except Exception:
            if action == "promote":
                raise
            # Users must be rid of a challenger whatever is wrong with what was recorded of it.
            _logger.exception("%s: version %d leaves without its evidence", self.model, state.challenger)
            return Evidence(champion=champion_of(traffic))

    def explain(self, entry: int) -> Explanation:
        """Make the decision of journal entry `entry` again from the journal alone.

        Raises: RolloutError if there is no such entry or it holds no decision.
        """
        return explain(self._fold.journal.entries(), entry)

    def _check_start(self, challenger: int, champion: int | None) -> None:
        problem = unusable_reason(self._registry, self.model, challenger)
        if problem is not None:
            raise RolloutError(f"{self.model}: {problem}; roll out another version")
        if champion is None:
            raise RolloutError(f"{self.model} has no champion to compare with; set the alias champion first")
        if champion == challenger:
            raise RolloutError(f"{self.model}: version {challenger} is the champion already")

    def _observe(
        self, state: RolloutState, traffic: CurrentTraffic, now: datetime, problems: dict[int, str]
    ) -> Evidence:
        return self._reader().evidence(state, traffic, self._unusable(state, problems), now)

    def _reader(self) -> EvidenceReader:
        return EvidenceReader(self._store, self.model, self._read, self._read_metric, self._read_live)

    def _unusable(self, state: RolloutState, problems: dict[int, str]) -> dict[int, str]:
        """Name the challengers that cannot be served, with the reason of each."""
        known = {
            version: unusable_reason(self._registry, self.model, version) or problems.get(version)
            for version in state.alive
        }
        return {version: problem for version, problem in known.items() if problem is not None}

    def _record(
        self, state: RolloutState, evidence: Evidence, decision: Decision, traffic_entry: int, now: datetime
    ) -> TickResult:
        stage = _NEXT_STAGE.get(decision.action, state.stage)
        moved = stage != state.stage or bool(decision.dropped) or decision.action == "ramp"
        # Without the log, nothing is known of labels, and there are never fewer than were judged before.
        labels = max(evidence.loss.labels, state.judged_labels)
        news = moved or labels != state.judged_labels
        body = {
            "event": "decided",
            "at": now.isoformat(),
            "stage": stage,
            "labels": labels,
            "decision": decision.model_dump(mode="json"),
            "evidence": evidence.model_dump(mode="json"),
            "traffic_entry": traffic_entry,
        }
        # A concurrent tick may have decided on the same rows first; then there is nothing left to record.
        entry = self._fold.transact(lambda history: body if news and history.current == state else None)
        if entry is not None and moved:
            apply_decided(self._registry, self.model, self._current())
        return tick_result(self.model, state, stage, evidence, decision, entry)

    def _settle(self, state: RolloutState) -> TickResult:
        """Make sure that the last traffic change of an ended rollout was made, and record that."""
        stage, note = state.stage, ""
        if stage == "promoted":
            stage, note = settle_promotion(self._registry, self.model, state)
        if stage != "promoted" and not enforce(
            self._registry, self.model, state.model_copy(update={"stage": stage})
        ):
            return TickResult(
                model=self.model, rollout=state.rollout, stage=stage, rule="withdrawing", text="busy"
            )
        # The process that ended the split may have been killed before it released the layer.
        release_layer(self._registry, self.model, state.policy)
        body = {"event": "settled", "at": self._clock().isoformat(), "stage": stage, "note": note}
        entry = self._fold.transact(lambda history: body if history.current == state else None)
        return TickResult(
            model=self.model,
            rollout=state.rollout,
            challenger=state.challenger,
            stage=stage,
            rule="settled",
            text=note or f"ended as {stage}",
            labels=state.judged_labels,
            entry=None if entry is None else entry.number,
        )

    def _finish_end(self) -> None:
        """Change the traffic for an end that was recorded by a process that failed then: its caller need not wait for a tick."""
        state = self._fold.refresh().current
        if state is not None and not state.is_open and not state.settled:
            self._settle(state)

    def _by_hand(self, event: str, reason: str) -> RolloutState:
        self._open()

        def say(history: History) -> dict[str, Any] | None:
            state = history.open
            if state is None or state.paused == (event == "paused"):
                return None
            return {"event": event, "at": self._clock().isoformat(), "reason": reason}

        self._fold.transact(say)
        return self._current()

    def _current(self) -> RolloutState:
        state = self._fold.refresh().current
        if state is None:
            raise NoRollout(f"{self.model} has never had a rollout; start one")
        return state

    def _open(self) -> RolloutState:
        state = self._current()
        if not state.is_open:
            raise NoRollout(f"{self.model}: rollout {state.rollout} ended as {state.stage}; start another")
        return state
