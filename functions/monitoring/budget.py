"""Budget of false alarms of a workspace, which its drift tests spend: monitors, models and days together.

One journal, `alarm_budget`. A window is tested once: its decision is recorded before an alarm is raised, and a run that died in
between, or another ticker, finds it there. Performance, embeddings, quality, skew and operations are outside: none of them has a
p-value that holds at levels this small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.monitoring.alarms import Alarm, alarm_journal, alarms_in, models_in
from toque.functions.monitoring.watch import Course
from toque.functions.runtime.context import Context, context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.functions.stats import LordPlusPlus
from toque.registry import Entry, Fold, Journal, NotFound

Decide = Callable[[int, Mapping[str, float]], Collection[str]]
"""Chooses, of corrected p-values by column of the window that ends with a cohort, the columns that raise an alarm."""
_MONTH_DAYS = 30
_ALARMS_KEPT = 64  # windows of a monitor whose alarm a repeated run finds again


class TestedWindows(BaseModel):
    """Windows of one monitor that were tested. series: version and length of the cohorts; upto: the newest one.

    alarms: columns that raised one, by cohort; of every other window up to `upto` there was none.
    """

    model_config = ConfigDict(frozen=True)

    series: str
    upto: int
    alarms: dict[int, tuple[str, ...]] = {}


class BudgetState(BaseModel):
    """State folded from the journal. alarms: numbers of the tests that raised one; spent: sum of all levels.

    by_day: levels spent on each of the last days; windows: tested, by model and monitor; called_false: keys of alarms.
    """

    model_config = ConfigDict(frozen=True)

    tests: int = 0
    alarms: tuple[int, ...] = ()
    spent: float = 0.0
    by_day: dict[date, float] = {}
    windows: dict[str, TestedWindows] = {}
    called_false: tuple[str, ...] = ()

    @property
    def rule(self) -> LordPlusPlus:
        """Rule that gives the level of the next test."""
        return LordPlusPlus(tests=self.tests, alarms=self.alarms)

    def expected_a_month(self, today: date) -> float:
        """Sum the levels of the last 30 days' tests: the most false alarms to expect, had nothing drifted."""
        since = today - timedelta(days=_MONTH_DAYS)
        return sum(spent for day, spent in self.by_day.items() if day > since)

    def decision(self, watched: str, series: str, cohort: int) -> tuple[str, ...] | None:
        """Return the columns that raised an alarm in a window; None if it was not tested."""
        tested = self.windows.get(watched)
        if tested is None or tested.series != series or cohort > tested.upto:
            return None
        return tested.alarms.get(cohort, ())


def budget_step(state: BudgetState, entry: Entry) -> BudgetState:
    """Fold one journal entry into the state."""
    body = entry.body
    if body["event"] == "called false":
        return state.model_copy(update={"called_false": (*state.called_false, body["key"])})
    tests, level, columns = state.tests + 1, float(body["level"]), tuple(body["columns"])
    before = state.windows.get(body["watched"])
    known = before.alarms if before is not None and before.series == body["series"] else {}
    alarms = known | {int(body["cohort"]): columns} if columns else known
    tested = TestedWindows(
        series=body["series"],
        upto=body["cohort"],
        alarms={cohort: alarms[cohort] for cohort in sorted(alarms)[-_ALARMS_KEPT:]},
    )
    today = date.fromisoformat(body["day"])
    recent = {day: spent for day, spent in state.by_day.items() if day > today - timedelta(days=_MONTH_DAYS)}
    return state.model_copy(
        update={
            "tests": tests,
            "alarms": (*state.alarms, tests) if columns else state.alarms,
            "spent": state.spent + level,
            "by_day": recent | {today: recent.get(today, 0.0) + level},
            "windows": state.windows | {body["watched"]: tested},
        }
    )


def budget_journal(used: Context) -> Fold[BudgetState]:
    """Open the journal of the workspace's budget of false alarms."""
    return Fold(
        Journal(used.store, "alarm_budget", actor=used.actor, clock=used.clock),
        BudgetState(),
        budget_step,
        encode=lambda state: state.model_dump(mode="json"),
        decode=BudgetState.model_validate,
    )


def spend(
    fold: Fold[BudgetState], watched: str, series: str, cohort: int, q: Mapping[str, float], today: date
) -> Collection[str]:
    """Test a window once, and return the columns that raise an alarm; of one that was tested, those of then.

    watched: model and monitor. q: corrected p-values by column; none of them, nothing is spent.
    """
    if not q:
        return fold.refresh().decision(watched, series, cohort) or ()

    def tested(state: BudgetState) -> dict[str, Any] | None:
        if state.decision(watched, series, cohort) is not None:
            return None
        level = state.rule.level
        columns = sorted(name for name, p in q.items() if p <= level)
        names = {"watched": watched, "series": series, "cohort": cohort}
        return {"event": "tested", **names, "level": level, "columns": columns, "day": today.isoformat()}

    entry = fold.transact(tested)
    return tuple(entry.body["columns"]) if entry else fold.state.decision(watched, series, cohort) or ()


def budgeted(course: Course[Any]) -> Decide:
    """Make the decision about windows of a monitor by the workspace's budget."""
    run, monitor, fold = course.run, course.monitor, budget_journal(context())
    series = f"{course.champion.version}/{monitor.cohort.total_seconds():g}"
    watched = f"{run.model}/{monitor.kind}"
    return lambda cohort, q: spend(fold, watched, series, cohort, q, run.now.date())


class AlarmBudget(BaseModel):
    """Budget of false alarms of a workspace's drift tests."""

    model_config = ConfigDict(frozen=True)

    share: float = Field(description="Share of false ones among all alarms that is kept to, in the mean.")
    tests: int = Field(description="Windows that were tested.")
    alarms: int = Field(description="Tests that raised an alarm.")
    spent: float = Field(
        description="Sum of the levels of all tests: the most false alarms to expect so far."
    )
    left: float = Field(description="Sum of the levels of all tests to come, should none raise an alarm.")
    next_level: float = Field(description="Level of the next test.")
    expected_a_month: float = Field(
        description="Most false alarms to expect of the tests of the last 30 days, had nothing drifted."
    )
    called_false: int = Field(description="Alarms, of any monitor, that people called false.")


@function(
    http=True,
    role="viewer",
    timeout_s=60,
    in_thread=True,
    command="monitor budget",
    view=View(
        facts="false alarms a month at most: expected_a_month | called false by people: called_false | alarms"
        " | tests | spent | left | level of the next test: next_level | share of false alarms kept to: share"
    ),
)
def false_alarm_budget() -> AlarmBudget:
    """Report what the drift tests of the workspace spent of their budget of false alarms, what is left, and what people called false."""
    state = budget_journal(context()).refresh()
    rule = state.rule
    return AlarmBudget(
        share=rule.alpha,
        tests=state.tests,
        alarms=len(state.alarms),
        spent=state.spent,
        left=max(0.0, rule.earned - state.spent),
        next_level=rule.level,
        expected_a_month=state.expected_a_month(context().clock().date()),
        called_false=len(state.called_false),
    )


@function(
    http=True,
    role="operator",
    timeout_s=60,
    command="monitor false-alarm ALARM_KEY",
    view=View(text="{alarm_key} is called false; {called_false} alarms are"),
)
def call_false_alarm(
    alarm_key: Annotated[
        str, Field(description="Key of the alarm, as `toque monitor incidents MODEL -o wide` shows it.")
    ],
) -> AlarmBudget:
    """Mark an alarm as false, by a person who looked at it; it is counted once, and goes on standing until it recovers.

    Raises: NotFound if no alarm has this key.
    """
    used = context()
    model, raised = alarm_key.partition("/")[0], list[Alarm]()
    if model in models_in(used.store, "alarms"):
        fold = alarm_journal(model, store=used.store, clock=used.clock, actor=used.actor)
        fold.refresh()
        raised = alarms_in(fold.journal.entries())
    if not any(alarm.key == alarm_key and not alarm.recovered for alarm in raised):
        raise NotFound(
            f"no alarm has the key {alarm_key!r}; `toque monitor incidents MODEL -o wide` shows the keys of those that stand"
        )
    body = {"event": "called false", "key": alarm_key}
    budget_journal(used).transact(lambda state: None if alarm_key in state.called_false else body)
    return false_alarm_budget()
