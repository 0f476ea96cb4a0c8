"""What twelve people come for, each done in the browser without the command line, whatever platform it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.ray_apps.console.browser import Person

MOST_CLICKS = 6


@dataclass(frozen=True, slots=True)
class Scene:
    """What a platform holds for the tasks; names are as its pages show them.

    failed, lacks: version that is not promoted, and why. waiting: version that an approver may let live. answered: model with
    labelled predictions; made_of: what the worst of them was made of. best: metric by which the best run has the least. dead: function
    of a dead letter. told: alarm that people were told of; silenced: another that stands. since, until, changed_by, reason: of a change
    of the champion. stale, users: feature view and what uses it. team: that costs something.
    """

    model: str
    failed: int
    lacks: str
    waiting: int
    answered: str
    made_of: str
    experiment: str
    compared: int
    best: str
    dead: str
    told: str
    silenced: str
    since: str
    until: str
    changed_by: str
    reason: str
    token: str
    stale: str
    users: str
    report: str
    report_says: str
    team: str


Task = Callable[[Person, Scene], None]


def find_why_a_version_is_not_promoted(visitor: Person, scene: Scene) -> None:
    """Find the condition that keeps a version from going live."""
    visitor.click(".side >> text=Models")
    visitor.click(f"th >> text='{scene.model}'")
    visitor.click(f"[aria-label=Versions] th >> text='{scene.failed}'")
    visitor.page.wait_for_selector("text=What it lacks before it may go live")
    assert scene.lacks in visitor.page.inner_text(".verdict")


def stop_a_rollout(visitor: Person, scene: Scene) -> None:
    """Roll a challenger back."""
    visitor.click(".side >> text=Rollouts")
    visitor.click(f"main th >> text='{scene.model}'")
    visitor.page.fill("#reason", "errors at the gate")
    visitor.page.once("dialog", lambda dialog: dialog.accept())  # it asks first
    visitor.click("text=Stop and roll back")
    visitor.page.wait_for_selector("h1 >> text=rolled back")


def approve_a_version_and_move_a_tenth_to_it(visitor: Person, scene: Scene) -> None:
    """Approve the version that waits, and give it ten percent of the traffic."""
    visitor.click(f"[aria-label='Versions that wait for approval'] >> text={scene.model}@{scene.waiting}")
    visitor.page.fill("#approve-comment", "the wind helps")
    visitor.click(f"text=Approve version {scene.waiting}")
    visitor.page.wait_for_selector("text=is approved by you")
    visitor.click(".side >> text=Traffic")
    visitor.click(f"main th >> text='{scene.model}'")
    visitor.page.fill("input[name=arm] >> nth=0", "canary")
    visitor.page.select_option("select[name=version] >> nth=0", str(scene.waiting))
    visitor.page.fill("input[name=share] >> nth=0", "10")
    visitor.click("text=Preview who moves")
    visitor.page.wait_for_selector("text=Who would move")
    visitor.click("text=Split the traffic so")
    visitor.page.wait_for_selector("text=The traffic is split as previewed")


def find_the_worst_prediction_and_its_features(visitor: Person, scene: Scene) -> None:
    """Find the prediction that was furthest from what came, and what it was made of."""
    visitor.click(".side >> text=Predictions")
    visitor.page.fill("#model", scene.answered)
    visitor.page.fill("#hours", "744")
    visitor.page.select_option("#order", "worst")
    visitor.click("[aria-label='By model, time and entity'] button")
    errors = visitor.page.locator("[aria-label=Predictions] tbody td:nth-last-child(2)").all_inner_texts()
    found = [float(each.replace("−", "-")) for each in errors]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.5
    visitor.click("[aria-label=Predictions] tbody a >> nth=0")
    visitor.page.wait_for_selector("text=What it was made of")
    assert scene.made_of in visitor.page.inner_text("#inputs")


def compare_runs_and_register_the_best(visitor: Person, scene: Scene) -> None:
    """Compare the newest runs and make a version of the one with the least loss."""
    visitor.click(".side >> text=Experiments")
    visitor.click(f"main th >> text='{scene.experiment}'")
    visitor.click(f"text=Compare the first {scene.compared}")
    row = visitor.page.locator(f"tr:has(th:text-is('{scene.best}')) td").all_inner_texts()
    at = next(at for at, text in enumerate(row) if text.endswith("least"))
    name = visitor.page.locator("thead th a").nth(at).inner_text()
    visitor.click(f"thead th a >> nth={at}")
    visitor.page.wait_for_selector(f"h1 >> text={name}")
    visitor.click("text=Register it as a version")
    visitor.page.fill("details #model", scene.model)
    visitor.page.select_option("#path", "model")
    visitor.click("text=Register a version")
    visitor.page.wait_for_selector("text=is registered from this run")


def run_a_dead_letter_again(visitor: Person, scene: Scene) -> None:
    """Queue an invocation again that has used up its attempts."""
    visitor.click(f"[aria-label='Dead letters'] >> text={scene.dead}")
    visitor.click("text=Run it again")
    visitor.page.wait_for_selector("text=It is queued again")


def silence_an_alarm(visitor: Person, scene: Scene) -> None:
    """Look after one alarm and silence another."""
    visitor.click(f"[aria-label='Alarms that stand'] >> text={scene.told}")
    visitor.click("text=I look after it")
    visitor.page.wait_for_selector("text=looks after it")
    other = visitor.page.locator(f"article:has-text('{scene.silenced}')")
    other.locator("input[name=reason]").fill("the labels of Sunday are late")
    visitor.clicks += 1
    other.locator("button >> text=Silence").click()
    visitor.page.wait_for_selector(f"text=Nobody is told of {scene.silenced} for 24 hours")


def see_who_changed_the_champion(visitor: Person, scene: Scene) -> None:
    """Find who changed the champion in some month, and why."""
    visitor.click(".side >> text=Audit")
    visitor.page.select_option("select[name=kind]", "model")
    visitor.page.fill("input[name=since]", scene.since)
    visitor.page.fill("input[name=until]", scene.until)
    visitor.click("main form button")
    row = f"tr:has-text('{scene.model}'):has-text('{scene.reason}')"
    visitor.page.wait_for_selector(row)
    assert scene.changed_by in visitor.page.inner_text(row)


def revoke_a_token(visitor: Person, scene: Scene) -> None:
    """Revoke a token."""
    visitor.click(".side >> text=Tokens")
    visitor.page.once("dialog", lambda dialog: dialog.accept())  # it asks first
    visitor.click(f"[aria-label='Revoke {scene.token}']")
    visitor.page.wait_for_selector(f"text={scene.token} is revoked")


def find_a_stale_feature_and_its_users(visitor: Person, scene: Scene) -> None:
    """Find a feature view that is too old to be served, and who uses it."""
    visitor.click(".side >> text=Features")
    visitor.click(f"tr:has-text('stale') a >> text={scene.stale}")
    visitor.page.wait_for_selector("text=is older than the")
    assert scene.users in visitor.page.inner_text("main")


def open_the_report(visitor: Person, scene: Scene) -> None:
    """Open the report of a model."""
    visitor.click(".side >> text=Reports")
    visitor.click(f"text='{scene.report}'")
    visitor.page.frame_locator("iframe").locator(f"text={scene.report_says}").first.wait_for()


def see_what_a_team_cost(visitor: Person, scene: Scene) -> None:
    """See what a team used, by day."""
    visitor.click(".side >> text=Costs")
    visitor.click("text=by team")
    visitor.click(f"th >> text={scene.team}")
    visitor.page.wait_for_selector(f"h1 >> text=Costs of {scene.team}")
    assert float(visitor.page.locator("tr.total td").first.inner_text().replace("\u202f", "")) > 0


TASKS: tuple[tuple[str, Task], ...] = (
    ("viewer", find_why_a_version_is_not_promoted),
    ("operator", stop_a_rollout),
    ("approver", approve_a_version_and_move_a_tenth_to_it),
    ("operator", find_the_worst_prediction_and_its_features),
    ("operator", compare_runs_and_register_the_best),
    ("operator", run_a_dead_letter_again),
    ("operator", silence_an_alarm),
    ("admin", see_who_changed_the_champion),
    ("admin", revoke_a_token),
    ("viewer", find_a_stale_feature_and_its_users),
    ("viewer", open_the_report),
    ("viewer", see_what_a_team_cost),
)
"""Role and task, in an order in which none takes away what a later one looks at."""
