"""Rendering: whatever the width, a number and an identifier are printed whole."""

import contextlib
import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.ray_apps.cli import output as show
from toque.ray_apps.cli.output import Column, laid_out, shortened

WIDTHS = st.integers(min_value=1, max_value=200)
IDENTIFIERS = st.text("0123456789abcdef", min_size=1, max_size=40)
WORDS = st.lists(
    st.one_of(
        st.text("abcdefghij.,:%", min_size=1, max_size=30),
        st.integers(-(10**20), 10**20).map(str),
        IDENTIFIERS,
    ),
    min_size=1,
    max_size=20,
)
COLUMNS = (
    Column("rows", "rows"),
    Column("ID", "id"),
    Column("when", "when"),
    Column("about", "about", text=True),
    Column("why", "why", text=True),
    Column("loss", "loss"),
)
ROWS = st.lists(
    st.tuples(
        st.integers(-(10**20), 10**20),
        IDENTIFIERS,
        st.datetimes().map(lambda at: f"{at.isoformat(timespec='seconds')}Z"),
        WORDS.map(" ".join),
        WORDS.map(" ".join),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=5,
)


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


@pytest.mark.parametrize(
    ("shown", "row", "written"),
    [
        ("n: n as count", {"n": [1, 2]}, 2),
        ("n: n as count", {"n": None}, None),
        ("n: n as pairs", {"n": {"a": 1, "b": "x"}}, ["a=1", "b=x"]),
        ("n: n as words", {"n": "dead_letter"}, "dead letter"),
        ("n: n as json", {"n": "a"}, '"a"'),
        ("n: n as age", {"n": 93_784.0}, "1d 2h"),
        ("n: n as age", {"n": 0.2}, "0s"),
        ("n: n as {:.1%}", {"n": 0.5}, "50.0%"),
        ("n: n as {:g} days or for ever", {"n": None}, "for ever"),
        ("n: n as {:g} days or for ever", {"n": 0}, "0 days"),
        ("n: n as {a}@{b}", {"n": {"a": "m", "b": 2}}, "m@2"),
        ("n: n as {a}", {"n": [{"a": "m"}, {"a": "o"}]}, ["m", "o"]),
        ("n: n as {a}", {"n": 3}, 3),
        ("n: n as {key}: {a} rows", {"n": {"t": {"a": 1}, "u": {"a": 0}}}, ["t: 1 rows", "u: 0 rows"]),
        ("n: n as {key}: {a} rows", {"n": {}}, []),
        ("why: n as {a}: {b}", {"n": {"a": "E", "b": "x: y"}}, "E: x: y"),
        ("n: a.1.b", {"a": [{"b": 1}, {"b": 2}]}, 2),
        ("n: a.2.b", {"a": [{"b": 1}, {"b": 2}]}, None),
        ("n: a?.b", {}, None),
        ("n: a.b?.c as count", {"a": {}}, None),
    ],
)
def test_a_column_writes_its_value_in_its_form(shown: str, row: Any, written: Any) -> None:
    (column,) = show.columns(shown)
    assert column.of(row) == written


@given(rows=ROWS, width=WIDTHS)
def test_every_number_identifier_and_date_is_whole_at_any_width(rows: list[Any], width: int) -> None:
    printed = laid_out(COLUMNS, rows, width=width)
    for number, identifier, when, *_, loss in rows:
        assert str(number) in words(printed)
        assert identifier in words(printed)
        assert any(when[:10] + " " + when[11:16] in line for line in printed), "a date is broken"
        shown = [float(each) for each in words(printed) if re.fullmatch(r"-?\d+(\.\d+)?(e[+-]\d+)?", each)]
        assert any(abs(each - loss) <= 5e-5 * abs(loss) for each in shown)


@given(words=WORDS, room=WIDTHS)
def test_a_shortened_text_holds_no_number_that_is_not_in_it(words: list[str], room: int) -> None:
    kept = {each for each in shortened(" ".join(words), room).split() if re.search(r"\d", each)}
    assert kept <= set(words)


@given(rows=ROWS, width=WIDTHS)
def test_a_line_is_wider_than_the_terminal_only_for_a_word_that_is_too_long(
    rows: list[Any], width: int
) -> None:
    for line in laid_out(COLUMNS, rows, width=width):
        heading = len("about  ")  # a block has its headings before its values
        longest = max([16, *map(len, line[heading:].split())])  # 16: a date with its time is one word
        assert len(line) <= max(width, heading + longest)


@given(rows=ROWS)
def test_tsv_is_what_went_in(rows: list[Any]) -> None:
    names, stream = [str(each.source) for each in COLUMNS], io.StringIO()
    with contextlib.redirect_stdout(stream):
        show.table("tsv", COLUMNS, [dict(zip(names, row, strict=True)) for row in rows])
    header, *read = csv.reader(io.StringIO(stream.getvalue()), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert header == [each.heading for each in COLUMNS]
    assert [(int(row[0]), *row[1:5], float(row[5])) for row in read] == rows


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("short", 10, "short"),
        ("wind: 100.0% of 150 values are missing", 24, "wind: 100.0% … missing"),
        ("toque.functions.monitoring.jobs", 11, "toque….jobs"),
        ("3f2a9c4d5e6f708192a3b4c5d6e7f809", 8, "3f2a9c4d5e6f708192a3b4c5d6e7f809"),
        ("74512 rows", 3, "74512 …"),
        ("since 2013-05-01 10:00 it was late", 33, "since 2013-05-01 10:00 … was late"),
        ("since 2013-05-01 10:00 it was late", 20, "since … it was late"),
    ],
)
def test_texts_are_cut_in_the_middle_and_between_words(text: str, room: int, expected: str) -> None:
    assert shortened(text, room) == expected


def test_a_table_that_does_not_fit_becomes_a_block_for_each_row() -> None:
    columns = (Column("ID", "id"), Column("rows", "rows"), Column("what", "what", text=True))
    rows = [["3f2a9c4d5e6f708192a3b4c5d6e7f809", 74512, "the feed of the weather is late"], ["b", 1, ""]]
    assert laid_out(columns, rows, width=40) == [
        "ID    3f2a9c4d5e6f708192a3b4c5d6e7f809",
        "rows  74512",
        "what  the feed of the weather is late",
        "",
        "ID    b",
        "rows  1",
        "what  -",
    ]
    assert laid_out(columns, rows, width=60) == [
        "ID                                 rows  what",
        "3f2a9c4d5e6f708192a3b4c5d6e7f809  74512  the feed … is late",
        "b                                     1  -",
    ]


def test_wide_prints_everything_on_one_line_however_long() -> None:
    columns = (Column("at", "at"), Column("loss", "loss"), Column("what", "what", text=True))
    heading, line = laid_out(columns, [["2013-05-01T10:00:07Z", 1 / 3, "late " * 50]], width=None, exact=True)
    assert heading.split() == ["at", "loss", "what"]
    assert line.startswith("2013-05-01 10:00:07  0.3333333333333333  late late")
    assert line.count("late") == 50


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (74512, "74512"),
        (74512.0, "74512"),
        (1234567.9, "1234568"),
        (12345.678, "12346"),
        (0.000012345678, "1.2346e-05"),
        ([], "-"),
        ({}, "-"),
        (True, "yes"),
        (None, "-"),
        ("", "-"),
        (["a", "b"], "a, b"),
        ({"a": 1}, '{"a": 1}'),
        ("2013-05-01T10:00:07.123456+00:00", "2013-05-01 10:00"),
        ("clear\x1b[2Jed", "clear[2Jed"),
    ],
)
def test_a_value_is_shown_as_a_person_reads_it(value: Any, text: str) -> None:
    (line,) = laid_out((Column("x", "x"),), [[value]], width=80)[1:]
    assert line == text


def test_wide_characters_take_two_cells() -> None:
    columns = (Column("name", "name"), Column("n", "n"))
    assert laid_out(columns, [["東京", 1], ["ab", 22]], width=80) == ["name   n", "東京   1", "ab    22"]


def test_people_are_told_the_page_and_programs_are_not(capsys: Any) -> None:
    for how, told in (("table", "in the console: http://t/ui/x\n"), ("json", ""), ("tsv", ""), (None, "")):
        show.see_page(how, "http://t/ui/x")
        assert capsys.readouterr() == ("", told)


def test_a_listing_says_that_there_are_more_and_that_there_is_nothing(capsys: Any) -> None:
    rows = [{"n": n} for n in range(4)]
    columns = (Column("n", "n"), Column("twice", lambda row: 2 * row["n"], wide=True))
    show.listing("tsv", columns, rows, empty="nothing", limit=3)
    assert capsys.readouterr() == (
        "n\n0\n1\n2\n",
        "the first 3 are shown and there are more; --limit 6 shows further ones\n",
    )
    show.listing("json", columns, rows, empty="nothing", limit=4)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == (rows, "")
    show.listing("wide", columns, rows[:2], empty="nothing", limit=4)  # in a pipe: TSV, all columns
    assert capsys.readouterr().out == "n\ttwice\n0\t0\n1\t2\n"
    show.listing("table", columns, [], empty="there is nothing", limit=4)
    assert capsys.readouterr() == ("", "there is nothing\n")


def test_tsv_keeps_a_row_on_a_line(capsys: Any) -> None:
    show.table("tsv", (Column("text", "text"), Column("none", "none")), [{"text": "a\tb\nc\\", "none": None}])
    assert capsys.readouterr().out == "text\tnone\na\\tb\\nc\\\\\t\n"


def test_columns_are_made_of_headings_and_keys(capsys: Any) -> None:
    made = show.columns(
        "ID: id | status | CPU, s: receipt.cpu_s | twice",
        wide="why: failure",
        texts="why",
        values={"twice": lambda row: 2 * row["id"]},
    )
    assert [(each.heading, each.text, each.wide) for each in made] == [
        ("ID", False, False),
        ("status", False, False),
        ("CPU, s", False, False),
        ("twice", False, False),
        ("why", True, True),
    ]
    rows = [
        {"id": 1, "status": "dead", "receipt": None, "failure": "out of gas"},
        {"id": 2, "status": "done", "receipt": {"cpu_s": 0.5}, "failure": None},
    ]
    show.table("tsv", made, rows)
    assert capsys.readouterr().out == "ID\tstatus\tCPU, s\ttwice\n1\tdead\t\t2\n2\tdone\t0.5\t4\n"
    with pytest.raises(KeyError):
        made[2].of({"receipt": {}})
    with pytest.raises(ValueError, match="no column has the heading \\['whi'\\]"):
        show.columns("id", texts="whi")


def test_an_error_is_one_line(capsys: Any) -> None:
    show.complain("it\n  failed\n\nhere")
    assert capsys.readouterr() == ("", "it failed here\n")
