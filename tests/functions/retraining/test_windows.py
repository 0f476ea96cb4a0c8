"""Which rows of the past a window chooses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pydantic import ValidationError

from toque.functions.retraining.windows import TrainingWindow

END = datetime(2013, 7, 1, tzinfo=UTC)
AT = np.datetime64("2010-07-01") + np.arange(0, 1_096).astype("timedelta64[D]")  # three years of days


def test_a_season_is_the_same_time_of_each_year() -> None:
    kept = AT[TrainingWindow(name="season", season_days=30).chosen(AT, END)]
    months = set(kept.astype("datetime64[M]").astype(int) % 12 + 1)
    assert months == {6, 7}
    assert set(kept.astype("datetime64[Y]").astype(str)) == {"2010", "2011", "2012", "2013"}
    assert len(kept) == pytest.approx(3 * 61, abs=3)


def test_older_rows_are_kept_more_rarely_and_always_the_same_ones() -> None:
    at = np.repeat(AT, 200)
    window = TrainingWindow(name="fading", half_life_days=365.0)
    kept = window.chosen(at, END)
    assert (kept == window.chosen(at, END)).all()
    age = (np.datetime64("2013-07-01") - at).astype(int)
    for days in (0, 365, 730):  # 30 days of 200 rows each: 6,000, so four standard errors are .026
        share = kept[(age >= days) & (age < days + 30)].mean()
        assert share == pytest.approx(0.5 ** ((days + 15) / 365), abs=0.026)


def test_a_window_without_conditions_chooses_everything() -> None:
    window = TrainingWindow(name="all")
    assert not window.chooses
    assert window.chosen(AT, END).all()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave one of them out"):
        TrainingWindow(name="w", days=20, season_days=30)
    with pytest.raises(ValueError, match="no time zone"):
        TrainingWindow(name="w").chosen(AT, END.replace(tzinfo=None) + timedelta(0))
