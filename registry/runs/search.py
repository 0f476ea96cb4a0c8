"""MLflow's filter grammar over runs: `metrics.log_loss < 0.5 and params.lr = '0.01'`.

Comparisons joined by AND, as MLflow has it: no OR, no parentheses around comparisons.
    comparison: [attributes.|metrics.|params.|tags.]name operator value | name IS [NOT] NULL
    operator:   = != < <= > >= LIKE ILIKE IN NOT IN      (params and tags compare as text)
    name:       plain, or in backticks or double quotes where it has other characters
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from toque.registry.errors import InvalidInput
from toque.registry.runs.record import RunRecord

Predicate = Callable[[Any], bool]
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<name>(?:[A-Za-z_][\w/\-]*\.)?(?:`[^`]+`|\"[^\"]+\")|[A-Za-z_][\w./\-]*)"
    r"|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<sign><=|>=|!=|<>|[=<>(),]))"
)
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KINDS = {
    "metric": "metrics",
    "metrics": "metrics",
    "param": "params",
    "params": "params",
    "parameter": "params",
    "parameters": "params",
    "tag": "tags",
    "tags": "tags",
    "attribute": "attributes",
    "attributes": "attributes",
    "attr": "attributes",
    "run": "attributes",
}
_ATTRIBUTES: dict[str, Callable[[RunRecord], Any]] = {
    "run_id": lambda run: run.id,
    "id": lambda run: run.id,
    "run_name": lambda run: run.name,
    "name": lambda run: run.name,
    "status": lambda run: run.status,
    "user_id": lambda run: run.actor,
    "actor": lambda run: run.actor,
    "experiment": lambda run: run.experiment,
    "start_time": lambda run: run.started_at.timestamp() * 1000,
    "created": lambda run: run.started_at.timestamp() * 1000,
    "end_time": lambda run: None if run.ended_at is None else run.ended_at.timestamp() * 1000,
}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class AnyOf(tuple[str, ...]):
    """Several values of one column of an item, which a comparison holds for if it holds for one of them."""

    __slots__ = ()


class Comparable(Protocol):
    """Left side of a comparison in a filter."""

    @property
    def kind(self) -> str:
        """Kind of the column, for messages."""
        ...

    @property
    def name(self) -> str:
        """Name of the column within its kind."""
        ...

    @property
    def is_number(self) -> bool:
        """Whether the column compares as a number."""
        ...

    def of(self, item: Any, /) -> Any:
        """Value of the column in `item`, `AnyOf` several, or None if absent."""
        ...


@dataclass(frozen=True, slots=True)
class Column:
    """Comparable column of a run: a metric, a parameter, a tag or an attribute."""

    kind: str
    name: str

    def of(self, run: RunRecord) -> Any:
        """Value of the column in a run, or None if absent."""
        if self.kind == "attributes":
            return _ATTRIBUTES[self.name](run)
        values: Mapping[str, Any] = getattr(run, self.kind)
        return values.get(self.name)

    @property
    def is_number(self) -> bool:
        """Whether the column compares as a number."""
        return self.kind == "metrics" or (
            self.kind == "attributes" and self.name in {"start_time", "created", "end_time"}
        )


def parse_where(where: str, columns: Callable[[str], Comparable] | None = None) -> Predicate:
    """Parse `where` to a predicate; empty text matches everything.

    columns: resolves a name to a column; None: the columns of runs.
    Raises: InvalidInput, with the position and what was expected there.
    """
    tests = _Parser(where, columns or parse_column).comparisons()
    return lambda item: all(test(item) for test in tests)


def parse_order(order_by: str | Sequence[str]) -> Callable[[list[RunRecord]], list[RunRecord]]:
    """Parse an order such as `metrics.auc DESC`, or several, to a sort function; runs without a value come last.

    Raises: InvalidInput.
    """
    columns = []
    for text in [order_by] if isinstance(order_by, str) else order_by:
        name, _, direction = text.strip().rpartition(" ")
        if direction.upper() not in {"ASC", "DESC"}:
            name, direction = text.strip(), "ASC"
        columns.append((parse_column(name.strip()), direction.upper() == "DESC"))

    def sort(runs: list[RunRecord]) -> list[RunRecord]:
        for column, reverse in reversed(columns):
            values = {run.id: column.of(run) for run in runs}
            known = [run for run in runs if _is_ordered(values[run.id])]
            known.sort(key=lambda run, v=values: v[run.id], reverse=reverse)  # type: ignore[misc]
            runs = known + [run for run in runs if not _is_ordered(values[run.id])]
        return runs

    return sort


def parse_column(name: str) -> Column:
    """Resolve a name to a column of runs. Raises: InvalidInput."""
    kind, dot, rest = name.partition(".")
    if not dot:
        kind, rest = "attributes", name
    rest = rest[1:-1] if rest[:1] in {"`", '"'} else rest
    known = _KINDS.get(kind.lower())
    if known is None:
        raise InvalidInput(f"{name!r}: begins with none of metrics., params., tags., attributes.")
    if known == "attributes" and rest.lower() not in _ATTRIBUTES:
        raise InvalidInput(f"{name!r}: no such attribute; there are {sorted(_ATTRIBUTES)}")
    return Column(known, rest.lower() if known == "attributes" else rest)


def _is_ordered(value: Any) -> bool:
    """Whether a value is present and not NaN."""
    return value is not None and value == value  # noqa: PLR0124 - NaN is what differs from itself


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, columns: Callable[[str], Comparable]) -> None:
        self._text = text
        self._columns = columns
        self._tokens = _tokens(text)
        self._next = 0

    def comparisons(self) -> list[Predicate]:
        tests: list[Predicate] = []
        while self._peek() is not None:
            if tests:
                self._word("AND")
            tests.append(self._comparison())
        return tests

    def _comparison(self) -> Predicate:
        token = self._take("name", "a column such as metrics.log_loss")
        column = self._columns(token.text)
        if self._is_word("IS"):
            return self._null_test(column)
        if self._is_word("NOT"):
            self._word("IN")
            values = self._values(column)
            return _test(column, lambda value: value not in values)
        if self._is_word("IN"):
            values = self._values(column)
            return _test(column, lambda value: value in values)
        for word in ("LIKE", "ILIKE"):
            if self._is_word(word):
                return _like(column, self._take("text", "a quoted pattern").text, ignore_case=word == "ILIKE")
        sign = self._take("sign", "an operator such as = or <")
        compare = _ORDERS.get("!=" if sign.text == "<>" else sign.text)
        if compare is None:
            raise self._error(sign, "an operator such as = or <")
        return _compare(column, compare, self._value(column))

    def _null_test(self, column: Comparable) -> Predicate:
        wanted = not self._is_word("NOT")
        self._word("NULL")
        return lambda run: (column.of(run) is None) == wanted

    def _values(self, column: Comparable) -> set[Any]:
        self._sign("(")
        values = {self._value(column)}
        while self._is_sign(","):
            values.add(self._value(column))
        self._sign(")")
        return values

    def _value(self, column: Comparable) -> Any:
        if column.is_number:
            return float(self._take("number", f"a number: {column.kind}.{column.name} is one").text)
        return self._take("text", f"a quoted text: {column.kind} compare as text").text

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, kind: str, wanted: str) -> _Token:
        token = self._peek()
        if token is None or token.kind != kind:
            raise self._error(token, wanted)
        self._next += 1
        return token

    def _is_word(self, word: str) -> bool:
        return self._skip(lambda token: token.kind == "name" and token.text.upper() == word)

    def _is_sign(self, sign: str) -> bool:
        return self._skip(lambda token: token.kind == "sign" and token.text == sign)

    def _skip(self, matches: Callable[[_Token], bool]) -> bool:
        token = self._peek()
        if token is None or not matches(token):
            return False
        self._next += 1
        return True

    def _word(self, word: str) -> None:
        if not self._is_word(word):
            raise self._error(self._peek(), word)

    def _sign(self, sign: str) -> None:
        if not self._is_sign(sign):
            raise self._error(self._peek(), repr(sign))

    def _error(self, token: _Token | None, wanted: str) -> InvalidInput:
        at = len(self._text) if token is None else token.at
        return InvalidInput(f"filter {self._text!r}: at {at} ({self._text[at : at + 20]!r}) want {wanted}")


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise InvalidInput(f"filter {text!r}: cannot read {text[at : at + 20]!r} at {at}")
        value = match[match.lastgroup]
        if match.lastgroup == "text":
            value = value[1:-1].replace("''", "'")
        tokens.append(_Token(match.lastgroup, value, match.start(match.lastgroup)))
        at = match.end()
    return tokens


def _compare(column: Comparable, compare: Callable[[Any, Any], bool], value: Any) -> Predicate:
    return _test(column, lambda found: compare(found, value))


def _test(column: Comparable, holds: Callable[[Any], bool]) -> Predicate:
    """Make the predicate over items by what holds of a value of the column that is there."""

    def test(item: Any) -> bool:
        value = column.of(item)
        if isinstance(value, AnyOf):
            return any(map(holds, value))
        return value is not None and holds(value)

    return test


def _like(column: Comparable, pattern: str, *, ignore_case: bool) -> Predicate:
    compiled = re.compile(_like_expression(pattern), re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    return _test(column, lambda value: compiled.fullmatch(str(value)) is not None)


def _like_expression(pattern: str) -> str:
    """Translate a LIKE pattern to a regular expression that needs at most length times length steps.

    What stands between two `%` is found leftmost in an atomic group, so that nothing is tried twice; taking each piece as
    early as it comes never loses a match.
    """
    first, *rest = [
        "".join("." if char == "_" else re.escape(char) for char in each) for each in pattern.split("%")
    ]
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + ".*" + last
