"""A model's page: figures by week that agree with a hand calculation, journals told in order, HTML that stands alone."""

import math
import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.evaluation import EvaluationError
from toque.functions.evaluation.outcome_kinds import BINARY, NUMBER
from toque.functions.evaluation.realised_loss import rescore
from toque.functions.monitoring import Alarm, PerformanceEstimate
from toque.functions.monitoring.diagnosis import Cause, Causes
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.reporting import TimelineEvent, timeline, trace_prediction, weeks
from toque.functions.reporting.page import Latency, answers, labels, render, render_model, served
from toque.functions.reporting.timeline import from_alarms, from_model, from_retrains
from toque.registry import Journal, Registry, Signature, TensorSpec, open_store

MONDAY = datetime(2013, 7, 1, tzinfo=UTC)


def outcome_rows(
    count: int, *, probability: float, label_of=lambda i: float(i % 2), step=timedelta(hours=4)
) -> pa.Table:
    """Served rows from a Monday on, each with its label."""
    at = [MONDAY + i * step for i in range(count)]
    columns = {
        "prediction_id": [f"p{i}" for i in range(count)],
        "model": ["m"] * count,
        "version": [1] * count,
        "arm": ["champion"] * count,
        "shadow": [False] * count,
        "unit": [None] * count,
        "predicted_at": at,
        "latency_ms": [1.0] * count,
        "numeric": [[float(i), math.nan] for i in range(count)],
        "categorical": [["UA"]] * count,
        "outputs": [[probability]] * count,
        "missing": [[]] * count,
        "entities": [None] * count,
        "day": [f"{moment:%Y-%m-%d}" for moment in at],
    }
    table = pa.table(columns, schema=PREDICTIONS)
    return table.append_column("label", pa.array([label_of(i) for i in range(count)], pa.float64()))


def test_a_week_runs_from_monday_and_has_the_mean_log_loss():
    rows = outcome_rows(84, probability=0.25)  # 14 days of 6
    found = weeks(rows, np.full(84, 0.5))
    assert [week.start for week in found] == [MONDAY, MONDAY + timedelta(days=7)]
    assert [week.labelled for week in found] == [42, 42]
    # Half the labels are 1: the mean of -ln(1/4) and -ln(3/4); for one half it is ln 2 whatever the label.
    assert found[0].served_loss == pytest.approx((math.log(4) + math.log(4 / 3)) / 2)
    assert found[0].reference_loss == pytest.approx(math.log(2))
    assert found[0].served_auc == pytest.approx(0.5)


def test_a_week_with_few_labels_is_left_out():
    assert weeks(outcome_rows(19, probability=0.25), np.full(19, 0.5)) == []


def test_a_week_of_one_class_has_no_auc():
    (week,) = weeks(outcome_rows(40, probability=0.25, label_of=lambda _: 0.0), np.full(40, 0.5))
    assert math.isnan(week.served_auc)


def test_a_week_of_numbers_has_the_mean_squared_error():
    rows = outcome_rows(40, probability=7.0, label_of=lambda i: 10.0 + i % 2)
    (week,) = weeks(rows, np.full(40, 10.0), NUMBER)
    assert (week.served_loss, week.reference_loss) == (12.5, 0.5)  # means of 9 and 16, of 0 and 1
    assert math.isnan(week.served_auc)
    with pytest.raises(ValueError, match=r"none of \[0.0, 1.0\], first 10"):
        labels(rows, BINARY)


def test_shadows_unlabelled_and_failed_rows_were_not_served():
    rows = outcome_rows(3, probability=0.25).to_pylist()
    rows[0]["shadow"] = True
    rows[1]["label"] = None
    rows += [{**rows[2], "outputs": None}, {**rows[2], "outputs": []}]
    table = pa.Table.from_pylist(rows, schema=outcome_rows(1, probability=0.1).schema)
    assert served(table)["prediction_id"].to_pylist() == ["p2"]


def signature_of(numeric, categorical):
    columns = {"numeric": numeric, "categorical": categorical}
    return Signature(
        inputs=[
            TensorSpec(
                name=name,
                datatype="FP32" if name == "numeric" else "BYTES",
                shape=[-1, len(own)],
                columns=own,
            )
            for name, own in columns.items()
            if own
        ],
        outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    )


def test_a_version_that_reads_fewer_columns_is_scored_on_those_it_reads():
    class Fewer:
        signature = signature_of(["a"], [])

        def predict(self, inputs):
            assert inputs.keys() == {"numeric"}
            return {"probability": inputs["numeric"] + 1}

    rows, logged = outcome_rows(3, probability=0.25), signature_of(["a", "b"], ["c"])
    assert rescore(rows, Fewer(), {1: logged}).tolist() == [[1.0], [2.0], [3.0]]
    Fewer.signature = signature_of(["x"], [])
    with pytest.raises(EvaluationError, match=r"numbers \['x'\].*'a', 'b'"):
        rescore(rows, Fewer(), {1: logged})


def test_rescoring_uses_the_logged_vectors():
    class Doubling:
        signature = signature_of(["a", "b"], ["c"])

        def predict(self, inputs):
            assert inputs["categorical"].shape == (3, 1)
            assert np.isnan(inputs["numeric"][:, 1]).all()
            return {"probability": inputs["numeric"][:, :1] * 2}

    rows = outcome_rows(3, probability=0.25)
    assert rescore(rows, Doubling(), {1: Doubling.signature}).tolist() == [[0.0], [2.0], [4.0]]
    assert answers(rows, BINARY).tolist() == [0.25, 0.25, 0.25]


def test_a_models_journal_is_told_in_order(tmp_path):
    registry = Registry(open_store(tmp_path.as_uri()), actor="ada")
    registry.create_model("m")
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "weights.txt").write_text("1")
    registry.create_version("m", path=folder)
    registry.record_gate("m", 1, "offline", passed=True, details={})
    registry.as_actor("bob").approve("m", 1, comment="fine")
    registry.set_alias("m", "champion", 1)
    told = from_model(registry.history("m"))
    assert [one.kind for one in told] == ["version", "gate", "approval", "champion"]
    assert [one.actor for one in told] == ["ada", "ada", "bob", "ada"]
    early = TimelineEvent(datetime(2000, 1, 1, tzinfo=UTC), "alarm", "long before")
    assert timeline(told, [early])[0] == early


def test_alarms_are_told_when_raised_and_when_over():
    alarm = Alarm(
        key="m/drift/x/1/0",
        model="m",
        monitor="drift",
        subject="x",
        version=1,
        raised_at=MONDAY,
        start=MONDAY,
        end=MONDAY + timedelta(days=1),
        text="x moved",
    )
    over = alarm.model_copy(update={"recovered": True, "raised_at": MONDAY + timedelta(days=2)})
    assert [one.text for one in from_alarms([alarm, over])] == ["drift: x moved", "drift: x moved (over)"]


def test_a_prediction_that_is_not_in_the_log_is_named(tmp_path):
    registry = Registry(open_store(tmp_path.as_uri()), actor="ada")
    with pytest.raises(LookupError, match="'p1' is not in the log of 'm'"):
        trace_prediction(registry, "m", "p1")


EVIL = "</script><script>alert(1)</script><b>&"


def test_the_page_stands_alone_and_escapes_what_it_shows():
    rows = outcome_rows(84, probability=0.25)
    page = render_model(
        model="m<script>",
        start=MONDAY,
        end=MONDAY + timedelta(days=14),
        reference=1,
        summary=["all is <well>", EVIL],
        weeks=weeks(rows, np.full(84, 0.5)),
        events=[
            TimelineEvent(MONDAY + timedelta(days=3), "alarm", "loss & drift"),
            TimelineEvent(MONDAY + timedelta(days=4), "champion", EVIL),
            TimelineEvent(MONDAY + timedelta(days=5), "gate", "not drawn"),
            TimelineEvent(MONDAY - timedelta(days=5), "alarm", "before the first week"),
        ],
        latencies=[Latency(1, 84, 1.0, 2.0, 3.0)],
        link="https://console/ui/models/m?a=1&b=2",
    )
    assert "all is &lt;well&gt;" in page
    assert "m&lt;script&gt;" in page
    assert page.count("<title>loss &amp; drift</title>") == 2  # over both charts
    assert page.count("before the first week") == page.count("not drawn") == 1  # in the table alone
    assert "<b>" not in page
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert '<a href="https://console/ui/models/m?a=1&amp;b=2">In the console</a>' in page
    assert not re.search(r"""(src|href)=["']?(http|//)(?!s://console)|@import|url\(""", page)


def test_estimates_stand_beside_what_labels_said():
    one = PerformanceEstimate(
        measure="share of 1", version=1, start=MONDAY, end=MONDAY + timedelta(days=1), rows=90, estimate=0.25, low=0.2,
        high=0.3, realised=0.5, agreed=False, assumes="only the shares changed",
    )  # fmt: skip
    content = {
        "model": "m",
        "start": MONDAY,
        "end": MONDAY,
        "reference": 1,
        "summary": [],
        "weeks": [],
        "events": [],
    }
    page = render_model(**content, estimates=[one])
    for text in (
        "Estimates before labels",
        "share of 1",
        "0.2 to 0.3",
        "0.5, contradicted",
        "if only the shares",
    ):
        assert text in page
    assert "Estimates before labels" not in render_model(**content)


def test_a_table_of_causes_has_a_bar_for_each_part_and_stays_text():
    alarm = Alarm(
        key="k", model="m", monitor="performance", subject=EVIL, version=1, raised_at=MONDAY, start=MONDAY, end=MONDAY, text=EVIL
    )  # fmt: skip
    causes = [
        Cause(kind="feature", what=EVIL, text=EVIL, contribution=0.2, error=0.05),
        Cause(kind="slice", what="short", text="", contribution=-0.1),
        Cause(kind="version", what="2", text="took over"),
    ]
    found = Causes(
        alarm=alarm, before=MONDAY, rows_before=9, rows=9, loss_before=0.1, loss=0.2, causes=tuple(causes), text=EVIL
    )  # fmt: skip
    page = render("alarm.html", causes=found, events=[])
    assert re.findall(r'<rect class="(\w+)" x="([-.0-9]+)" y="1" width="([.0-9]+)"', page) == [
        ("more", "0", "80.0"),
        ("less", "-40.0", "40.0"),
    ]
    assert page.count('class="error"') == 1
    assert "took over" in page
    assert "<script" not in page
    assert "In the console" not in page


def test_what_came_of_an_alarm_is_told(tmp_path):
    alarm = {"monitor": "drift", "text": "x moved"}
    finding = {"rule": "cooldown", "text": "3 days since the last start"}
    decision = {"action": "skip", "rule": "cooldown", "findings": [finding]}
    journal = Journal(open_store(f"file://{tmp_path}"), "retraining/m", actor="inspector")
    at = MONDAY.isoformat()
    for number, body in enumerate(
        [
            {"event": "started", "at": at, "alarm": alarm},
            {"event": "finished", "at": at, "finished": {"text": "version 2 is in shadow"}},
            {"event": "skipped", "at": at, "alarm": alarm, "decision": decision},
        ]
    ):
        journal.append(body, at=number)
    assert [(one.kind, one.text) for one in from_retrains(journal.entries())] == [
        ("retrain", "started for drift: x moved"),
        ("retrain", "ended: version 2 is in shadow"),
        ("retrain", "no retrain for drift, skip by cooldown: 3 days since the last start"),
    ]
