"""What the pages of experiments and runs show, how they search, and how a version is made of a run."""

import re

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_platform import MODEL, NOW
from tests.ray_apps.console.sample_runs import EXPERIMENT, RUNS
from tests.ray_apps.console.sample_work import WORK
from tests.ray_apps.console.test_pages import HOSTILE, Markup
from toque.registry.runs.record import Point, RunRecord, Segment

LIST = f"/ui/experiments/{EXPERIMENT}"


def rows(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a href="/ui/runs/(\w+)"', page)


async def test_runs_are_searched_in_the_language_of_the_api(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    assert f'href="{LIST}"' in (await visitor.get("/ui/experiments")).text
    assert rows((await visitor.get(LIST)).text) == list(RUNS[::-1])
    where = "params.optimizer = 'adam' and attributes.status != 'RUNNING'"
    found = (await visitor.http.get(LIST, params={"where": where, "order_by": "metrics.auc DESC"})).text
    assert sorted(rows(found)) == [RUNS[1], RUNS[3], RUNS[5]]
    refused = await visitor.http.get(LIST, params={"where": "metrics.auc >"})
    assert refused.status_code == 200
    assert "want a number" in refused.text


async def test_runs_are_paged_by_cursor(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toque.ray_apps.console.pages.runs.ROWS", 3)
    visitor = await platform.signed_in("viewer")
    path, found = LIST, []
    while path:
        page = (await visitor.get(path)).text
        found += rows(page)
        following = re.search(r'rel="next" href="([^"]+)"', page)
        path = following[1].replace("&amp;", "&") if following else ""
    assert found == list(RUNS[::-1])


async def test_a_run_shows_its_curves_parameters_and_files(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(f"/ui/runs/{RUNS[0]}")).text
    for name in ("valid_loss", "train_loss", "auc"):
        assert f'aria-label="{name} over 39 steps' in page
    assert "trial-0" in page
    path = f"/ui/runs/{RUNS[0]}/files/model/weights.npy"
    assert path in page
    answer = await visitor.get(path)
    assert answer.content == bytes(range(256))
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (await visitor.get(f"/ui/runs/{RUNS[0]}/files/..%2F..%2Ftokens")).status_code == 404
    assert "ValueError: &lt;no&gt; rows" in (await visitor.get(f"/ui/runs/{RUNS[6]}")).text


async def test_curves_are_thinned_and_keep_their_ends(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    headers = {"Authorization": f"Bearer {platform.tokens['viewer']}"}
    found = (await visitor.http.get(f"/runs/{RUNS[0]}/series?points=5", headers=headers)).json()
    assert [step for step, _, _ in found["auc"]] == [0, 10, 20, 29, 39]


async def test_runs_are_compared_by_a_drawing_and_a_table(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get("/ui/runs/compare?" + "&".join(f"run={each}" for each in RUNS[:3]))).text
    drawing = page.partition('<svg class="chart parallel"')[2].partition("</svg>")[0]
    assert drawing.count('class="line') == 3
    assert "params.lr" in drawing
    assert "metrics.auc" in drawing
    one = (await visitor.get(f"/ui/runs/compare?run={RUNS[0]}")).text
    assert "Choose two or more runs" in one


async def test_the_best_run_is_registered_as_a_version_by_an_operator(platform: Platform) -> None:
    page = f"/ui/runs/{RUNS[2]}"
    visitor = await platform.signed_in("operator")
    form = {"model": MODEL, "path": "model", "description": "the best of eight"}
    answer = await visitor.send(page, f"{page}/register", **form)
    assert answer.headers["location"] == f"/ui/models/{MODEL}/versions/6"
    assert "is registered from this run" in (await visitor.get(answer.headers["location"])).text
    made = platform.context.registry().get_version(MODEL, 6)
    assert (made.lineage.run, list(made.files), made.author) == (RUNS[2], ["weights.npy"], "a-operator")
    assert set(made.metrics) == {"valid_loss", "train_loss", "auc"}
    answer = await visitor.send(page, f"{page}/register", model=MODEL, path="nothing", description="")
    assert answer.headers["location"] == page
    assert "there are no files at" in (await visitor.get(page)).text


async def test_a_run_shows_the_last_lines_of_the_invocation_that_made_it(platform: Platform) -> None:
    registry = platform.context.registry()
    made_by = WORK["succeeded"]
    record = RunRecord(
        id="c" * 32, experiment=MODEL, name="logged", status="RUNNING", actor="ada", started_at=NOW,
        tags={"invocation": made_by}, facts={"remote": True},
    )  # fmt: skip
    registry.begin(record)
    registry.end(record, "FINISHED")
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(f"/ui/runs/{record.id}")).text
    assert f'href="/ui/invocations/{made_by}"' in page
    assert "8,421 rows, 3 late ones" in page
    assert "&lt;b&gt;done&lt;/b&gt;" in page
    assert "The last 10 minutes" not in (await visitor.get(f"/ui/runs/{RUNS[0]}")).text


async def test_a_run_shows_what_it_used_and_follows_the_invocation_that_makes_it(platform: Platform) -> None:
    registry = platform.context.registry()
    used = {"wall_s": 40.0, "cpu_s": 60.0, "peak_memory_bytes": 1_500_000_000}
    record = RunRecord(
        id="d" * 32, experiment=MODEL, name="measured", status="RUNNING", actor="ada", started_at=NOW,
        tags={"invocation": WORK["succeeded"]}, facts={"remote": True, "resources": used},
    )  # fmt: skip
    registry.begin(record)
    points = [("system/cpu_utilization_percentage", Point(step, 10.0 * step, NOW)) for step in range(3)]
    registry.store_segment(record.id, 0, Segment(points=points).to_bytes(nonce="n"))
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(f"/ui/runs/{record.id}")).text
    assert f'data-live="runs/{record.id} invocations/{WORK["succeeded"]}"' in page
    shown = page.partition("<h2>Resources</h2>")[2].partition("</section>")[0]
    for text in (
        "<dd>1.5</dd>",
        "<dd>1.5\u202fGB</dd>",
        "<dd>12.25\u202fs</dd>",
        "<dd>214\u202fMB</dd>",
        "system/cpu",
    ):
        assert text in shown, text
    registry.end(record, "FINISHED")
    assert "data-live=" not in (await visitor.get(f"/ui/runs/{record.id}")).text


async def test_a_viewer_registers_nothing(platform: Platform) -> None:
    page = f"/ui/runs/{RUNS[2]}"
    visitor = await platform.signed_in("viewer")
    assert "Register" not in (await visitor.get(page)).text
    answer = await visitor.send(page, f"{page}/register", model=MODEL, path="model")
    assert answer.status_code == 403
    assert 6 not in platform.context.registry().get_model(MODEL).versions


async def test_no_text_of_a_run_becomes_markup(platform: Platform) -> None:
    registry = platform.context.registry()
    registry.create_experiment("hostile", title=HOSTILE, tags={HOSTILE[:40]: HOSTILE})
    ids = ["a" * 32, "b" * 32]
    for number, run_id in enumerate(ids):
        record = RunRecord(
            id=run_id, experiment="hostile", name=HOSTILE, status="RUNNING", actor="<b>eve</b>", started_at=NOW,
            params={HOSTILE: f"{HOSTILE}{number}"}, tags={HOSTILE: HOSTILE, "error": HOSTILE, "invocation": HOSTILE},
            facts={"remote": True, "<b>": {"<i>": HOSTILE}},
        )  # fmt: skip
        registry.begin(record)
        points = [(HOSTILE, Point(step, float(number + step), NOW)) for step in range(3)]
        registry.store_segment(run_id, 0, Segment(points=points).to_bytes(nonce="n"))
        registry.end(record, "FINISHED")
    visitor = await platform.signed_in("admin")
    for path in (
        "/ui/experiments",
        "/ui/experiments/hostile",
        f"/ui/runs/{ids[0]}",
        f"/ui/runs/compare?run={ids[0]}&run={ids[1]}",
    ):
        answer = await visitor.get(path)
        assert answer.status_code == 200, path
        markup = Markup()
        markup.feed(answer.text)
        assert not {"b", "i"} & markup.tags, path
        assert not [name for name in markup.attributes if name.startswith("on") or name == "style"], path
