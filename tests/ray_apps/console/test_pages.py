"""What the pages show and change, for whom, and that no text of a user becomes markup."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_features import SOURCE, VIEW
from tests.ray_apps.console.sample_platform import MODEL
from tests.ray_apps.console.sample_runs import RUNS
from tests.ray_apps.console.sample_work import WORK
from toque.functions.pages.rendering import number, percent, size, time_of
from toque.ray_apps.console import pages
from toque.ray_apps.console.page import STATIC_FOLDERS
from toque.ray_apps.console.pages.models import draw_lineage
from toque.ray_apps.console.route import ANYBODY, CHANGE, pages_router
from toque.ray_apps.gateway.services import DeployedModels
from toque.registry import Registry

VERSION = f"/ui/models/{MODEL}/versions/5"
PAGES = (
    "/ui/",
    "/ui/models",
    "/ui/approvals",
    f"/ui/models/{MODEL}",
    VERSION,
    f"/ui/models/{MODEL}/compare?version=3&version=5",
    "/ui/traffic",
    f"/ui/traffic/{MODEL}",
    "/ui/rollouts",
    f"/ui/rollouts/{MODEL}",
    "/ui/audit",
    "/ui/tokens",
    "/ui/predictions",
    "/ui/predictions?model=price-of-fuel",
    "/ui/predictions/flight-00",
    "/ui/predictions/flight-00?explain=true",
    "/ui/predictions/flight-00?times=true",
    "/ui/costs",
    "/ui/queue",
    "/ui/reports",
    "/ui/features",
    f"/ui/features/{VIEW}",
    f"/ui/sources/{SOURCE}",
    "/ui/monitors",
    f"/ui/monitors/{MODEL}",
    "/ui/experiments",
    "/ui/experiments/late-flights",
    "/ui/runs/compare?" + "&".join(f"run={each}" for each in RUNS),
    f"/ui/runs/{RUNS[0]}",
    "/ui/functions",
    "/ui/functions/refresh_flights",
    "/ui/invocations",
    *(f"/ui/invocations/{each}" for each in WORK.values()),
)
LOADED = sum(each.stat().st_size for folder in STATIC_FOLDERS for each in folder.iterdir())


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_loads_nothing_from_elsewhere_and_has_no_inline_script_or_style(
    platform: Platform, path: str
) -> None:
    answer = await (await platform.signed_in("admin")).get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"""<script(?![^>]*\ssrc="/ui/static/)|\sstyle=|\son\w+=|javascript:""", answer.text)
    assert not re.findall(r"""(?:src|href|action)="(?:https?:)?//""", answer.text)
    assert len(answer.content) + LOADED < 300_000


async def test_files_of_a_page_are_kept_for_ever_and_rechecked_by_their_tag(platform: Platform) -> None:
    visitor = platform.visitor()
    page = await visitor.get("/ui/sign-in")
    for path in re.findall(r'(?:href|src)="(/ui/static/[^"]+)"', page.text):
        answer = await visitor.get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        tag = {"If-None-Match": answer.headers["etag"]}
        assert (await visitor.http.get(path, headers=tag)).status_code == 304
    assert (
        await visitor.get("/ui/static/..%2Fapp.py")
    ).status_code == 401  # no file: a page, for which one signs in
    assert (await visitor.get("/ui/static/app.py")).status_code == 404


async def test_the_home_page_names_the_version_that_waits_for_an_approver(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get("/ui/")).text
    assert f"{MODEL}@5" in page
    assert f"{MODEL}@2" not in page  # its gate failed: an approval would not help
    assert "0 of 1 approvals" in page


async def test_an_approver_approves_with_a_comment_and_the_version_may_go_live(platform: Platform) -> None:
    visitor = await platform.signed_in("approver")
    answer = await visitor.send(VERSION, f"{VERSION}/approve", comment="looks <b>right</b>")
    assert (answer.status_code, answer.headers["location"]) == (303, VERSION)
    page = (await visitor.get(VERSION)).text
    assert "late-flights@5 is approved by you." in page
    assert "looks &lt;b&gt;right&lt;/b&gt;" in page
    assert "It may go live" in page
    assert "is approved by you" not in (await visitor.get(VERSION)).text  # told once
    await visitor.send(VERSION, f"{VERSION}/promote", expected="3", reason="better")
    assert "It is the champion" in (await visitor.get(VERSION)).text


async def test_a_promotion_that_the_registry_refuses_says_why_and_changes_nothing(platform: Platform) -> None:
    visitor = await platform.signed_in("operator")
    for expected, why in (("3", "0 of 1 approvals"), ("1", "champion")):
        await visitor.send(VERSION, f"{VERSION}/promote", expected=expected, reason="now")
        page = (await visitor.get(VERSION)).text
        told = re.search(r'<p class="notice error" role="alert">(.*?)</p>', page, re.DOTALL)
        assert told
        assert why in told[1]
    assert platform.context.registry().get_model(MODEL).aliases["champion"] == 3


@pytest.mark.parametrize("action", ["approve", "reject", "promote"])
async def test_what_a_viewer_may_not_do_is_not_offered_and_refused_if_asked(
    platform: Platform, action: str
) -> None:
    visitor = await platform.signed_in("viewer")
    assert f"versions/5/{action}" not in (await visitor.get(VERSION)).text
    answer = await visitor.send(VERSION, f"{VERSION}/{action}", comment="", reason="mine", expected="3")
    assert answer.status_code == 403
    assert "a-viewer has" in answer.text
    state = platform.context.registry().get_model(MODEL)
    assert state.aliases["champion"] == 3
    assert state.versions[5].approvals == ()


async def test_someone_who_may_only_call_sees_why_there_is_nothing_to_see(platform: Platform) -> None:
    answer = await (await platform.signed_in("caller")).get("/ui/models")
    assert answer.status_code == 403
    assert "this needs viewer" in answer.text


ICON, SCRIPT = "/ui/static/icon.svg", "/ui/static/console.js"


class Markup(HTMLParser):
    """Elements of a page that could act, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.images: list[str] = []
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.attributes |= set(given)
        if tag in {"img", "script"}:
            source = str(given.get("src")).partition("?")[0]
            (self.images if tag == "img" else self.scripts).append(source)
        self.links += [str(given[name]) for name in ("href", "action", "formaction") if name in given]

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_a_rollout_is_shown_with_its_sequence_verdict_and_what_is_missing(platform: Platform) -> None:
    visitor = await platform.signed_in("operator")
    assert MODEL in (await visitor.get("/ui/rollouts")).text
    page = (await visitor.get(f"/ui/rollouts/{MODEL}")).text
    for told in (
        "Version 4 against 3",
        "What is missing",
        "advance",
        'class="band series-0"',
        "paired labels",
    ):
        assert told in page
    await visitor.send(f"/ui/rollouts/{MODEL}", f"/ui/rollouts/{MODEL}/pause", reason="look at <b>errors</b>")
    page = (await visitor.get(f"/ui/rollouts/{MODEL}")).text
    assert "look at &lt;b&gt;errors&lt;/b&gt;" in page
    assert "paused</span>" in page
    assert "Go on" in page
    await visitor.send(f"/ui/rollouts/{MODEL}", f"/ui/rollouts/{MODEL}/explode", reason="x")
    assert "knows no change" in (await visitor.get(f"/ui/rollouts/{MODEL}")).text


async def test_a_viewer_cannot_stop_a_rollout(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(f"/ui/rollouts/{MODEL}")).text
    assert "roll-back" not in page
    answer = await visitor.send(f"/ui/rollouts/{MODEL}", f"/ui/rollouts/{MODEL}/roll-back", reason="x")
    assert answer.status_code == 403


async def test_a_model_without_a_rollout_says_how_to_start_one(platform: Platform) -> None:
    answer = await (await platform.signed_in("viewer")).get("/ui/rollouts/churn")
    assert answer.status_code == 200  # the page of each model links to it
    assert "toque rollout start churn" in answer.text


async def test_a_split_is_previewed_and_then_made_unless_it_changed_meanwhile(platform: Platform) -> None:
    visitor, page = await platform.signed_in("operator"), f"/ui/traffic/{MODEL}"
    fields = {"arm": "canary", "version": "4", "share": "25", "shadow": "5"}
    shown = (await visitor.send(page, f"{page}/preview", **fields)).text
    assert "15.00\u202f%</strong> of the units from champion (version 3) to canary (version 4)" in shown
    assert "85.00\u202f% stay where they are" in shown
    expected = re.search(r'name="expected" value="(\d+)"', shown)
    assert expected
    sent = {**fields, "expected": expected[1], "reason": "more"}
    await visitor.send(page, f"{page}/set", **sent)
    traffic = platform.context.registry().traffic(MODEL)
    assert [(arm.version, arm.share) for arm in traffic.arms] == [(3, 0.75), (4, 0.25)]
    assert traffic.shadows == (5,)
    await visitor.send(page, f"{page}/set", **{**sent, "share": "50"})
    assert 'role="alert"' in (await visitor.get(page)).text  # the split was another when this was previewed
    assert platform.context.registry().traffic(MODEL).arms[1].share == 0.25


async def test_a_split_that_cannot_be_says_which_field_is_wrong(platform: Platform) -> None:
    visitor, page = await platform.signed_in("operator"), f"/ui/traffic/{MODEL}"
    for share in ("many", "120"):
        await visitor.send(page, f"{page}/preview", arm="canary", version="4", share=share)
        told = re.search(r'role="alert">(.*?)</p>', (await visitor.get(page)).text, re.DOTALL)
        assert told
        assert "share" in told[1]


async def test_the_audit_names_who_was_refused_and_is_for_admins(platform: Platform) -> None:
    viewer = await platform.signed_in("viewer")
    assert (await viewer.get("/ui/audit")).status_code == 403
    assert 'href="/ui/audit"' not in (await viewer.get("/ui/")).text
    platform.context.registry().create_model("seen-in-the-audit")
    admin = await platform.signed_in("admin")
    page = (await admin.get("/ui/audit?kind=model&since=2026-02-01")).text
    assert "seen-in-the-audit" in page
    assert (await admin.get("/ui/audit?since=yesterday")).status_code == 422


async def test_an_entry_of_the_audit_leads_to_what_it_changed(platform: Platform) -> None:
    admin = await platform.signed_in("admin")
    page = (await admin.get("/ui/audit?since=2026-01-01")).text
    assert f'<a href="/ui/models/{MODEL}/versions/4">review: {MODEL}@4</a>' in page
    assert f'<a href="/ui/models/{MODEL}">' in page
    assert '<a href="/ui/tokens">token created: a-viewer</a>' in page
    assert 'href="/ui/audit?actor=a-caller"' not in (await admin.get("/ui/tokens")).text  # it was never used


async def test_the_drawn_lineage_leads_to_run_views_traffic_and_predictions(platform: Platform) -> None:
    run = platform.context.registry().get_version(MODEL, 4).lineage.run
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get(f"/ui/models/{MODEL}/versions/4")).text
    for link in (
        f"/ui/features/{VIEW}",
        f"/ui/traffic/{MODEL}",
        f"/ui/predictions?model={MODEL}&amp;version=4",
    ):
        assert f'<a href="{link}"><g class="node' in page, link
    assert f"/ui/runs/{run}" not in page  # the run is not known here


async def test_code_and_parent_of_a_version_come_from_none_of_its_data() -> None:
    page = SimpleNamespace(link=lambda *names, **_: "/".join(map(str, names)))
    lineage = {"datasets": [{"name": "t", "version": 1}], "features": ["a", "b"], "code": "c0de", "parent": 1}
    for run, edges in (
        ("r", 3 + 3),
        (None, 5),
    ):  # three of data to the run, and run, code and parent to the version
        version = {"model": "m", "version": 2, "lineage": {**lineage, "run": run}}
        drawn = draw_lineage(version, [], [], page.link)
        assert drawn.count('class="edge"') == edges


async def test_links_to_what_has_no_page_of_its_own_lead_somewhere(platform: Platform) -> None:
    visitor = await platform.signed_in("operator")
    page = await visitor.get("/ui/rollouts/churn")
    assert (page.status_code, "toque rollout start churn" in page.text) == (200, True)
    assert (await visitor.get("/ui/rollouts/no-such-model")).status_code == 404


async def test_the_champion_of_before_comes_back_by_a_button(platform: Platform) -> None:
    registry = platform.context.registry()
    champion = registry.get_version(MODEL, "champion").version
    path = f"/ui/models/{MODEL}"
    viewer, operator = await platform.signed_in("viewer"), await platform.signed_in("operator")
    assert "Roll back from version" not in (await viewer.get(path)).text
    await operator.send(path, f"{path}/rollback", expected=str(champion + 1), reason="stale")
    assert registry.get_version(MODEL, "champion").version == champion
    await operator.send(path, f"{path}/rollback", expected=str(champion), reason="worse")
    assert registry.get_version(MODEL, "champion").version != champion


async def test_an_admin_revokes_a_token_by_its_button(platform: Platform) -> None:
    admin, viewer = await platform.signed_in("admin"), await platform.signed_in("viewer")
    assert (await viewer.get("/ui/")).status_code == 200
    await admin.send("/ui/tokens", "/ui/tokens/a-viewer/revoke")
    assert "a-viewer is revoked" in (await admin.get("/ui/tokens")).text
    assert (await viewer.get("/ui/")).status_code == 401


HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(1)>{{7919*7919}}' onclick='alert(1)"""


async def test_no_text_of_a_user_becomes_markup(platform: Platform, tmp_path: Path) -> None:
    registry = Registry(platform.context.store, actor="<b>eve</b>")
    registry.create_model("hostile", description=HOSTILE, tags={HOSTILE[:40]: HOSTILE})
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "<img src=x onerror=alert(1)>.bin").write_bytes(b"x")
    card = f"{HOSTILE}\n\n[x](javascript:alert(1)) ![x](https://evil.example/i.png)"
    registry.create_version(
        "hostile", tmp_path / "v", description=card, tags={"t": HOSTILE}, metrics={"<i>m</i>": 1.0}
    )
    details = {
        "note": HOSTILE,
        "checks": [
            {"name": HOSTILE, "value": 1.0, "limit": 1.0, "rule": HOSTILE, "passed": True, "note": HOSTILE}
        ],
        "<b>": {"<i>": HOSTILE},
    }
    registry.record_gate("hostile", 1, "offline", False, details)
    Registry(platform.context.store, actor="mallory").reject("hostile", 1, comment=HOSTILE)
    visitor = await platform.signed_in("admin")
    for path in (
        "/ui/models",
        "/ui/models/hostile",
        "/ui/models/hostile/versions/1",
        "/ui/models/hostile/compare?version=1",
    ):
        answer, markup = await visitor.get(path), Markup()
        assert answer.status_code == 200, path
        markup.feed(answer.text)
        assert set(markup.images) <= {ICON}, path
        assert set(markup.scripts) == {SCRIPT}, path
        assert not [name for name in markup.attributes if name.startswith("on") or name == "style"], path
        # A Markdown image is a plain link, which loads nothing.
        elsewhere = [link for link in markup.links if not link.startswith(("/", "#", "?"))]
        assert set(elsewhere) <= {"https://evil.example/i.png"}, path
        assert not {"b", "i"} & markup.tags, path
        assert "62710561" not in markup.text, path


async def test_names_in_addresses_reach_no_other_route_and_become_no_markup(platform: Platform) -> None:
    visitor = await platform.signed_in("admin")
    for name in ("..%2F..%2Ftokens", "%3Cscript%3E", "a%20b", "late-flights%2Fpolicy"):
        answer = await visitor.get(f"/ui/models/{name}")
        assert answer.status_code in {404, 422}, name
        assert "<script>" not in answer.text.partition("<body>")[2]


async def test_lists_are_paged_by_cursor(platform: Platform) -> None:
    registry = platform.context.registry()
    for number_ in range(60):
        registry.create_model(f"m-{number_:03d}")
    visitor = await platform.signed_in("viewer")
    first = (await visitor.get("/ui/models")).text
    assert "m-000" in first
    assert "m-059" not in first
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following
    assert "m-059" in (await visitor.get(following[1].replace("&amp;", "&"))).text


async def test_a_page_that_fails_says_so_and_shows_nothing_of_the_failure(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    visitor = await platform.signed_in("viewer")
    monkeypatch.setattr("toque.ray_apps.console.pages.models.ROWS", "not a number")
    answer = await visitor.get("/ui/models")
    assert answer.status_code in {422, 500}
    assert "Traceback" not in answer.text


def test_a_page_that_changes_something_must_declare_that_its_form_is_checked() -> None:
    router = pages_router()

    async def unchecked(page=ANYBODY): ...

    async def checked(page=ANYBODY, form=CHANGE): ...

    with pytest.raises(TypeError, match="declare CHANGE"):
        router.post("/x")(unchecked)
    router.post("/y")(checked)


def test_figures_are_written_the_same_everywhere() -> None:
    assert [number(each) for each in (None, 1234567, 0.0123456, -2.5, float("nan"), float("inf"))] == [
        "–",
        "1\u202f234\u202f567",
        "0.012346",
        "−2.5",
        "NaN",
        "∞",
    ]
    assert percent(0.0525) == "5.2\u202f%"
    assert [size(each) for each in (12, 4220, 5_000_000_000_000_000)] == [
        "12\u202fB",
        "4.22\u202fkB",
        "5e+03\u202fTB",
    ]
    assert 'title="2026-03-01 12:00:00 UTC"' in str(time_of("2026-03-01T13:00:00+01:00"))


def test_pages_know_the_platform_by_its_api_alone() -> None:
    """None reads store, journals or Redis by itself: what they import of the platform are names of roles and states."""
    found = set()
    for file in Path(pages.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else ()
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            found |= {f"{module}{each.name}" for each in names}
    ours = ("registry", "functions", "featurestore", "kernels", "clusters")
    rooms = ("redis", "deltalake", *(f"toque.{room}." for room in ours))
    states, renderer = "toque.functions.runtime.durable.record", "toque.functions.pages."
    assert {each for each in found if each.startswith(rooms) and not each.startswith(renderer)} == {
        "toque.registry.Role",
        f"{states}.ENDED",
        f"{states}.Status",
    }
    own = ("toque.ray_apps.console.", "toque.ray_apps.admission.", "toque.ray_apps.function_schemas.")
    assert all(each.startswith(own) for each in found if each.startswith("toque.ray_apps."))


@pytest.mark.parametrize("served", [{"pool"}, {"gateway", f"predictor-{MODEL}-2"}, None])
async def test_a_champion_that_nothing_serves_is_said_so_wherever_it_is_shown(
    platform: Platform, served: set[str] | None
) -> None:
    names = None if served is None else frozenset(served)
    platform.app.state.services.deployed = DeployedModels(lambda: names, patience_s=60)
    visitor = await platform.signed_in("viewer")
    for path in (f"/ui/models/{MODEL}", f"/ui/traffic/{MODEL}", "/ui/", "/ui/models", "/ui/traffic"):
        text = (await visitor.get(path)).text.lower()
        assert ("nothing serves" in text) is (served is not None and "pool" not in served), path
