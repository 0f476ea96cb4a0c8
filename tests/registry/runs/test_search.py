import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.registry import InvalidInput, RunRecord
from toque.registry.runs.search import _like_expression, parse_order, parse_where

NAN = float("nan")


def run(name: str, *, loss: float | None = None, **params: str) -> RunRecord:
    return RunRecord(
        id=name,
        experiment="exp",
        name=name,
        status="FINISHED",
        actor="ada",
        started_at=datetime(2013, 1, 1, tzinfo=UTC),
        params=params,
        metrics={} if loss is None else {"log_loss": loss, "a b": 1.0, "val/loss": loss},
        tags={"team": "Ops", "mlflow.note": "it's"},
    )


RUNS = [
    run("r1", loss=0.4, lr="0.01"),
    run("r2", loss=0.6, lr="0.02"),
    run("r3", lr="0.01"),
    run("r4", loss=NAN),
]


# Expected answers by MLflow's documentation of search_runs, worked out by hand.
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("", "r1 r2 r3 r4"),
        ("   ", "r1 r2 r3 r4"),
        ("metrics.log_loss < 0.5", "r1"),
        ("metrics.log_loss<0.5 and params.lr = '0.01'", "r1"),
        ("metric.log_loss >= .6", "r2"),
        ("metrics.log_loss != 0.4", "r2 r4"),
        ("metrics.log_loss > -1e3 AND metrics.log_loss <= 4e-1", "r1"),
        ("params.lr = '0.01'", "r1 r3"),
        ("params.lr != '0.01'", "r2"),
        ("params.lr IN ('0.01', '0.02')", "r1 r2 r3"),
        ("params.lr NOT IN ('0.01')", "r2"),
        ("params.lr LIKE '0.0%'", "r1 r2 r3"),
        ("params.lr LIKE '_._2'", "r2"),
        ("tags.team = 'ops'", ""),
        ("tags.team ILIKE 'OP%'", "r1 r2 r3 r4"),
        ("tags.`mlflow.note` = 'it''s'", "r1 r2 r3 r4"),
        ("tags.\"mlflow.note\" LIKE 'it%'", "r1 r2 r3 r4"),
        ("tags.mlflow.note LIKE 'it%'", "r1 r2 r3 r4"),
        ("metrics.`a b` = 1", "r1 r2 r4"),
        ("metrics.val/loss < 0.5", "r1"),
        ("params.lr IS NULL", "r4"),
        ("params.lr IS NOT NULL", "r1 r2 r3"),
        ("attributes.run_name = 'r2'", "r2"),
        ("run_id IN ('r1', 'r4')", "r1 r4"),
        ("attributes.start_time >= 1356998400000", "r1 r2 r3 r4"),
        ("attributes.start_time > 1356998400000", ""),
        ("attributes.end_time > 0", ""),
        ("status = 'FINISHED' and actor <> 'bob'", "r1 r2 r3 r4"),
    ],
)
def test_filters_mean_what_mlflow_says(where: str, expected: str):
    holds = parse_where(where)
    assert " ".join(one.id for one in RUNS if holds(one)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("metrics.log_loss < '0.5'", "at 19 .* want a number"),
        ("params.lr = 0.01", "want a quoted text"),
        ("metrics.log_loss <", "want a number"),
        ("metrics.log_loss", "want an operator"),
        ("metrics.log_loss ( 3", "want an operator"),
        ("metrics.a < 1 or metrics.b < 2", "want AND"),
        ("metrics.a < 1 metrics.b < 2", "want AND"),
        ("(metrics.a < 1)", "want a column"),
        ("things.a = 'x'", "begins with none of"),
        ("attributes.colour = 'x'", "no such attribute"),
        ("params.a IN '1'", r"want '\('"),
        ("params.a IN ('1'", r"want '\)'"),
        ("params.a NOT LIKE '1'", "want IN"),
        ("params.a LIKE 1", "want a quoted pattern"),
        ("params.a IS 3", "want NULL"),
        ("params.a = 'open", "cannot read"),
        ("params.a = 'x' ; drop", "cannot read"),
    ],
)
def test_a_filter_that_cannot_be_read_says_where(where: str, message: str):
    with pytest.raises(InvalidInput, match=message):
        parse_where(where)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("metrics.log_loss", "r1 r2 r3 r4"),
        ("metrics.log_loss DESC", "r2 r1 r3 r4"),
        ("metrics.log_loss asc", "r1 r2 r3 r4"),
        (["params.lr", "metrics.log_loss DESC"], "r1 r3 r2 r4"),
        ("attributes.run_name DESC", "r4 r3 r2 r1"),
        ("metrics.`a b`", "r1 r2 r4 r3"),
        ([], "r1 r2 r3 r4"),
    ],
)
def test_order_puts_runs_without_a_value_last(order: str | list[str], expected: str):
    assert " ".join(one.id for one in parse_order(order)(list(RUNS))) == expected


def test_an_invalid_order_is_refused():
    with pytest.raises(InvalidInput):
        parse_order("colour DESC")


def like(pattern: str, text: str) -> bool:
    """LIKE by its definition: `%` is any text, `_` any letter."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in {"_", text[0]} and like(pattern[1:], text[1:])


@given(pattern=st.text("ab.%_", max_size=8), text=st.text("ab.\n", max_size=8))
def test_a_like_pattern_matches_what_its_definition_says(pattern: str, text: str):
    assert (re.compile(_like_expression(pattern), re.DOTALL).fullmatch(text) is not None) == like(
        pattern, text
    )


@pytest.mark.parametrize("pattern", ["%_" * 40 + "b", "%a" * 40 + "b", "%" * 200 + "b"])
def test_a_pattern_of_many_wildcards_is_answered_at_once(pattern: str):
    # Tried piece by piece in every way, the first of these would take longer than the universe is old.
    assert re.compile(_like_expression(pattern), re.DOTALL).fullmatch("a" * 2_000) is None
