"""Predictions are found by id, time and entity; their inputs are for operators alone."""

import re
from datetime import timedelta

import pyarrow as pa
import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_features import VIEW
from tests.ray_apps.console.sample_platform import NOW
from tests.ray_apps.console.sample_predictions import MODEL, TRACE, row
from tests.ray_apps.console.test_pages import HOSTILE, Markup
from toque.featurestore import FeatureStore
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import TRACED_PREDICTIONS
from toque.ray_apps.console.pages.monitors import _explained
from toque.registry import Table

LIST = f"/ui/predictions?model={MODEL}"


def names(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/ui/predictions/([^"?]+)', page)


async def test_predictions_are_found_by_time_and_entity_and_paged(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    first = (await visitor.get(LIST)).text
    found = names(first)
    assert found[:3] == ["flight-00", "flight-00", "flight-01"]
    assert len(found) == 50
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following
    older = names((await visitor.get(following[1].replace("&amp;", "&"))).text)
    assert older == [f"flight-{number}" for number in range(49, 60)]
    assert names((await visitor.get(f"{LIST}&entity=N7")).text) == ["flight-07"]
    assert "No prediction of" in (await visitor.get(f"{LIST}&entity=N")).text
    assert names((await visitor.get(f"{LIST}&before=2026-03-02T09:00&hours=1")).text)[0] == "flight-30"


async def test_an_id_leads_to_the_request_with_its_stages_label_and_shadow(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    answer = await visitor.get(f"/ui/predictions/by-id?id={TRACE}")
    assert answer.headers["location"] == f"/ui/predictions/{TRACE}?days=30"
    page = (await visitor.get(f"/ui/predictions/{TRACE}")).text
    for text in ("features", "1.2 ms", "flight-00", f"{MODEL}@1", TRACE):
        assert text in page, text
    gone = await visitor.get("/ui/predictions/nothing")
    assert gone.status_code == 404
    assert "look back further" in gone.text


async def test_inputs_are_shown_to_operators_and_not_to_viewers(platform: Platform) -> None:
    path = "/ui/predictions/flight-00"
    operator = (await (await platform.signed_in("operator")).get(path)).text
    assert re.search(r"<dt>wind</dt><dd>12.5 <span class=\"badge warn\">missing", operator)
    assert "N14228" in operator
    viewer = (await (await platform.signed_in("viewer")).get(path)).text
    assert "N14228" not in viewer
    assert "12.5" not in viewer
    assert "shown to operators" in viewer


async def test_a_prediction_tells_which_row_of_a_view_each_feature_was_and_when_that_was_known(
    platform: Platform,
) -> None:
    at = NOW - timedelta(hours=3)
    features = FeatureStore(platform.context.store, clock=lambda: at + timedelta(minutes=5), actor="ada")
    features.write_offline(
        VIEW, pa.table({"origin": ["SFO"], "event_timestamp": [at], "wind": [12.5], "sky": ["clear"]})
    )
    entities = '{"origin": "SFO"}'
    logged = [
        row("known", NOW, entities=entities),
        row("unknown", NOW - timedelta(minutes=1), entities='{"tailnum": "N1"}'),
    ]
    Table(platform.context.store, predictions_table(MODEL)).append(
        pa.Table.from_pylist(logged, schema=TRACED_PREDICTIONS)
    )
    operator = await platform.signed_in("operator")
    offered = (await operator.get("/ui/predictions/known?days=3650")).text
    assert "Show when each was known" in offered
    assert VIEW not in offered
    told = (await operator.get("/ui/predictions/known?days=3650&times=true")).text
    cells = re.search(r'<th scope="row">wind.*?</tr>', told, re.DOTALL)
    assert cells
    for text in (
        f'title="{at:%Y-%m-%d %H:%M:%S} UTC"',
        f"{at + timedelta(minutes=5):%H:%M:%S} UTC",
        f"/ui/features/{VIEW}",
    ):
        assert text in cells[0], text
    assert "given with the request" in told  # the distance is of no view
    assert VIEW not in (await operator.get("/ui/predictions/unknown?days=3650&times=true")).text
    viewer = await platform.signed_in("viewer")
    assert VIEW not in (await viewer.get("/ui/predictions/known?days=3650&times=true")).text


async def test_predictions_of_one_version_are_found(platform: Platform) -> None:
    rows = [row("by-2", NOW, version=2)]
    Table(platform.context.store, predictions_table(MODEL)).append(
        pa.Table.from_pylist(rows, schema=TRACED_PREDICTIONS)
    )
    visitor = await platform.signed_in("viewer")
    assert names((await visitor.get(f"{LIST}&version=2")).text) == ["by-2"]
    assert names((await visitor.get(f"{LIST}&version=2&order=worst")).text) == []
    assert set(names((await visitor.get(f"{LIST}&version=1&order=worst")).text)) == {"flight-00"}
    assert (await visitor.get(f"{LIST}&version=x")).status_code == 422


async def test_no_text_of_a_prediction_becomes_markup(platform: Platform) -> None:
    hostile = HOSTILE.replace("/", "")
    rows = [row(hostile, NOW, arm=hostile, unit=hostile, entities='{"<b>": "<i>x</i>"}', missing=["<u>"])]
    Table(platform.context.store, predictions_table(MODEL)).append(
        pa.Table.from_pylist(rows, schema=TRACED_PREDICTIONS)
    )
    visitor = await platform.signed_in("operator")
    shown = await visitor.http.get("/ui/predictions", params={"model": MODEL, "entity": hostile})
    link = names(shown.text)[0]
    for text in (shown.text, (await visitor.get(f"/ui/predictions/{link}?days=3650")).text):
        markup = Markup()
        markup.feed(text)
        assert not {"b", "i", "u"} & markup.tags
        assert not [name for name in markup.attributes if name.startswith("on") or name == "style"]


async def test_an_operator_has_the_answer_explained_and_a_viewer_is_not_offered_it(
    platform: Platform,
) -> None:
    path = "/ui/predictions/flight-00"
    operator = await platform.signed_in("operator")
    offered = (await operator.get(path)).text
    assert re.search(r'href="/ui/predictions/flight-00\?explain=true#explanation"', offered)
    assert "toque run explain_prediction" in offered
    told = (await operator.get(f"{path}?explain=true")).text.partition('id="explanation"')[2]
    assert "probability is 0.91." in told
    assert "it is 0.644;" in told
    added = re.findall(
        r'<th scope="row">(\w+)</th><td class="num">[^<]*</td><td class="num">([^<]*)</td>', told
    )
    assert [name for name, _ in added] == [
        "distance",
        "hour",
        "wind",
    ]  # by hand: .0002 x 600, .01 x 8, .0088 x 7.5
    assert [float(value) for _, value in added] == pytest.approx([0.12, 0.08, 0.066], abs=1e-4)
    viewer = (await (await platform.signed_in("viewer")).get(f"{path}?explain=true")).text
    assert "explain" not in viewer


async def test_a_prediction_whose_inputs_are_not_the_models_says_so(platform: Platform) -> None:
    log = Table(platform.context.store, predictions_table(MODEL))
    log.append(pa.Table.from_pylist([row("odd", NOW, numeric=[4.0])], schema=TRACED_PREDICTIONS))
    told = (await (await platform.signed_in("operator")).get("/ui/predictions/odd?explain=true")).text
    assert "It cannot be explained: " in told


def test_an_explanation_is_laid_out_with_the_largest_part_first() -> None:
    found = {"attributions": {"wind": -6.0, "distance": 3.0, "hour": 0.0}, "value": -2.0, "baseline": 1.0}
    rows = _explained(found, {"values": {"wind": 3.0, "distance": 4.0}})["rows"]
    assert [(each["name"], each["given"], each["length"]) for each in rows] == [
        ("wind", 3.0, -100.0),
        ("distance", 4.0, 50.0),
        ("hour", None, 0.0),
    ]
