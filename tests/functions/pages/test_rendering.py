"""How the console writes spans of time."""

from datetime import timedelta

import pytest

from toque.functions.pages.rendering import NOTHING, duration, spans


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, NOTHING), (0, "0 s"), (0.092018, "0.092018 s"), (59.5, "59.5 s"), (60, "1 min"), (3_599.6, "1 h"), (3_661, "1 h 1 min"),
        (86_400, "1 d"), (86_459, "1 d"), (2_419_200, "28 d"), (1_123_200, "13 d"), (-7_200, "−2 h"), (86_400 * 1_234, "1 234 d"),
        (float("inf"), "∞ s"), (float("nan"), "NaN s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_in_the_units_of_its_size(seconds: float | None, text: str) -> None:
    assert plain(duration(seconds)) == text


@pytest.mark.parametrize(
    ("span", "text"),
    [(timedelta(days=28), "28 d"), (timedelta(days=1), "1 d"), (timedelta(hours=3, minutes=5), "3 h 5 min"), (timedelta(), "0 s"),
     (timedelta(days=2, seconds=3, microseconds=12), "2 d")],
)  # fmt: skip
def test_spans_in_a_sentence_are_written_for_people(span: timedelta, text: str) -> None:
    assert (
        plain(spans(f"{span} in canary, at most {timedelta(days=28)}")) == f"{text} in canary, at most 28 d"
    )


@pytest.mark.parametrize(
    "sentence", ["since 2026-11-30T23:59:00+00:00 nothing", "at 2026-11-30 23:59:00+00:00", "798 of 600 paired labels", "1:2"]
)  # fmt: skip
def test_moments_and_figures_in_a_sentence_stay(sentence: str) -> None:
    assert spans(sentence) == sentence
