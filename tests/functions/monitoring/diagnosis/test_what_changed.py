"""What stands behind an alarm, ordered by what it brought to the loss."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from tests.functions.monitoring.conftest import DAY, MODEL, START, ServedModel
from toque.functions.monitoring import Alarm, DriftMonitor, alarms, watch_drift
from toque.functions.monitoring import diagnosis as what_changed
from toque.functions.reporting import alarm_report
from toque.functions.runtime import use_context
from toque.functions.stats.decompose import CellChange, ColumnChange


def raise_alarm(served: ServedModel, days: int, **changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": f"{MODEL}/performance/loss/1/9", "model": MODEL, "monitor": "performance", "subject": "loss", "version": 1,
        "raised_at": served.now, "start": served.now - days * DAY, "end": served.now, "text": "loss rose",
    }  # fmt: skip
    one = Alarm(**(fields | changes))
    alarms(MODEL).report(one)
    return one


def test_a_feature_that_moved_to_where_the_loss_is_higher_stands_first(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.shift = 2.5
        served.serve(20)  # far from 0 the model is sure, and loses little
        watch_drift(MODEL, DriftMonitor(window=2, k=1, n=1))
        served.shift = 0.0
        served.serve(5)
        watch_drift(MODEL, DriftMonitor(window=2, k=1, n=1))
        raise_alarm(served, 5)
        found = alarm_report(MODEL)
        first = found.causes.causes[0]
        assert (first.kind, first.what) == ("feature", "wind")
        assert first.contribution is not None
        assert found.causes.loss is not None
        assert first.contribution > 0.5 * (found.causes.loss - (found.causes.loss_before or 0))
        assert "most of it by feature wind" in found.causes.text
        page = served.store.get(found.key).decode()
    assert "Parts in the change of the mean loss" in page
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="https?://', shown)  # nothing from elsewhere
    moved = next(one for one in found.causes.causes if one.what == "wind")
    assert moved.since is None  # it went back to what was learnt: the drift monitor has nothing against it


def test_a_model_that_no_longer_fits_shows_in_slices_and_not_in_features(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(20)
        served.bias = 2.0
        served.serve(5)
        raise_alarm(served, 5)
        found = alarm_report(MODEL).causes
    assert {one.kind for one in found.causes} == {"slice"}
    assert all(one.contribution and one.error and one.contribution > 3 * one.error for one in found.causes)


def test_a_slice_of_nearly_all_rows_is_none() -> None:
    cells = [
        CellChange(name, share, share, 0.4, 0.6, 0.2 * share, 0.01)
        for name, share in [("rain >= 0", 1.0), ("rain is missing", 0.9)]
    ]
    parts = [ColumnChange("rain", 0.0, 0.2, 0.01, (cell,)) for cell in cells]
    assert [one.what for one in what_changed._slices(parts)] == ["rain is missing"]


def test_a_drifted_feature_says_since_when_and_an_incident_what_it_spoiled(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(15)
        served.shift = 2.5
        served.serve(6)
        served.now += timedelta(hours=2)
        watch_drift(MODEL, DriftMonitor(window=2, k=1, n=1, lookback=timedelta(days=25)))
        broken = {
            "key": f"{MODEL}/quality/unit/1",
            "monitor": "quality",
            "subject": "unit",
            "columns": ("wind",),
            "text": "F to C",
        }
        raise_alarm(served, 6, **broken)
        raise_alarm(served, 5)
        found = alarm_report(MODEL, f"{MODEL}/performance/loss/1/9").causes
    wind = next(one for one in found.causes if one.kind == "feature")
    assert wind.since is not None
    assert START + 13 * DAY <= wind.since <= START + 16 * DAY
    incident = next(one for one in found.causes if one.kind == "incident")
    assert (incident.what, incident.contribution) == ("unit", wind.contribution)


def test_a_version_that_took_over_is_named_with_what_it_lost(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        served.serve(15)
        served.register()  # version 2, and the world is the same
        served.bias = 2.0
        served.serve(5)
        raise_alarm(served, 5, version=2)
        found = alarm_report(MODEL).causes
    version = next(one for one in found.causes if one.kind == "version")
    assert version.what == "2"
    assert version.since == START + 15 * DAY
    assert version.contribution == pytest.approx((found.loss or 0) - (found.loss_before or 0))
    assert "100% of the requests; its code is that of version 1" in version.text


def test_too_few_labels_are_an_answer_and_no_alarm_is_an_error(served: ServedModel) -> None:
    served.register()
    with use_context(served.context()):
        with pytest.raises(ValueError, match="not an alarm"):
            alarm_report(MODEL)
        served.labelled = 0.0
        served.serve(5)
        raise_alarm(served, 2)
        found = alarm_report(MODEL).causes
        assert (found.causes, found.loss) == ((), None)
        assert "30 of each are needed" in found.text
        with pytest.raises(ValueError, match="not the alarm 'other'; the last are"):
            alarm_report(MODEL, "other")
