"""Reports are listed by subject and kind, and shown where their scripts reach nothing."""

import re

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_platform import MODEL
from tests.ray_apps.console.test_pages import HOSTILE, Markup

PAGE = b"<h1>Weekly</h1><script>document.title = 'x'</script>"
NAMES = {
    f"{MODEL}.html": ("model", MODEL),
    f"{MODEL}-rollout-3.html": ("rollout", MODEL),
    f"{MODEL}-alarm-0a1b2c3d4e5f.html": ("alarm", MODEL),
    "churn-evidently.html": ("evidently", "churn"),
    "features-flight_weather.html": ("features", "flight_weather"),
}


def write(platform: Platform) -> None:
    for name in NAMES:
        platform.context.store.put(f"reports/{name}", PAGE)


async def test_reports_are_listed_by_subject_and_kind(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    assert "No report was written yet" in (await visitor.get("/ui/reports")).text
    write(platform)
    headers = {"Authorization": f"Bearer {platform.tokens['viewer']}"}
    found = (await visitor.http.get("/reports", headers=headers)).json()
    assert {each["name"]: (each["kind"], each["subject"]) for each in found} == NAMES
    page = (await visitor.get(f"/ui/reports?subject={MODEL}&kind=alarm")).text
    assert re.findall(r'href="/ui/reports/([^"?]+\.html)"', page) == [f"{MODEL}-alarm-0a1b2c3d4e5f.html"]


async def test_every_name_that_a_store_holds_is_read_and_a_longer_one_is_refused(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    headers = {"Authorization": f"Bearer {platform.tokens['viewer']}"}
    for length in (128, 200, 201, 240):
        name = f"{'m' * (length - 5)}.html"
        platform.context.store.put(f"reports/{name}", PAGE)
        assert (await visitor.http.get(f"/reports/{name}", headers=headers)).content == PAGE, length
    refused = await visitor.http.get(f"/reports/{'m' * 236}.html", headers=headers)
    assert (refused.status_code, "240" in refused.text) == (422, True)


async def test_a_reports_scripts_run_in_a_frame_without_an_origin_alone(platform: Platform) -> None:
    write(platform)
    visitor = await platform.signed_in("viewer")
    around = await visitor.get(f"/ui/reports/{MODEL}.html")
    assert "frame-src 'self'" in around.headers["content-security-policy"]
    assert f'src="/ui/reports/{MODEL}.html/content" sandbox="allow-scripts"' in around.text
    path = f"/ui/reports/{MODEL}.html/content"
    for dest, scripts in (("iframe", True), ("document", False), ("frame", False), ("", False)):
        answer = await visitor.http.get(path, headers={"sec-fetch-dest": dest})
        assert answer.content == PAGE
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        policy = dict(
            (part.strip() + " ").split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none' "
        assert policy["frame-ancestors"] == "'self' "
        assert policy["sandbox"] == ("allow-scripts " if scripts else "")
        assert ("script-src" in policy) is scripts
    caller = await platform.signed_in("caller")
    for end in ("", "/content"):
        for name in ("nothing.html", "..%2Ftokens", "x"):
            assert (await visitor.get(f"/ui/reports/{name}{end}")).status_code in {404, 422}, name
        assert (await caller.get(f"/ui/reports/{MODEL}.html{end}")).status_code == 403


async def test_no_name_of_a_report_becomes_markup(platform: Platform) -> None:
    name = HOSTILE.replace("/", "")[:60]
    platform.context.store.put(f"reports/{name.replace(' ', '')}.html", PAGE)
    answer = await (await platform.signed_in("viewer")).get("/ui/reports")
    markup = Markup()
    markup.feed(answer.text)
    assert not [each for each in markup.attributes if each.startswith("on")]
