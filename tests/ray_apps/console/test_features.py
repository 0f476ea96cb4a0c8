"""What the pages of features show of a view, its users and its health."""

import re

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_features import SOURCE, UNREADABLE, VIEW
from tests.ray_apps.console.sample_platform import MODEL
from tests.ray_apps.console.test_pages import Markup


async def test_a_view_names_its_owner_and_the_models_that_use_it(platform: Platform) -> None:
    visitor = await platform.signed_in("viewer")
    page = (await visitor.get("/ui/features")).text
    assert f'href="/ui/features/{VIEW}"' in page
    assert f"{MODEL}@3" in page
    assert "No view has all these words" in (await visitor.get("/ui/features?words=nothing")).text
    assert VIEW in (await visitor.get("/ui/features?words=operations wind")).text


async def test_a_view_shows_freshness_fill_and_distributions(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get(f"/ui/features/{VIEW}")).text
    for drawing in ("fill over time", "freshness_s over time", "Distribution of wind", "Distribution of sky"):
        assert f'aria-label="{drawing}"' in page
    assert "88.8\u202f%" in page  # every ninth wind is missing
    assert f"/ui/monitors/{MODEL}" in page
    markup = Markup()
    markup.feed(page)
    assert "b" not in markup.tags  # a value of a column


async def test_a_view_shows_how_its_features_were_distributed_over_time(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get(f"/ui/features/{VIEW}")).text
    drawn = re.search(
        r'<svg[^>]*aria-label="Median and quartiles of wind over time".*?</svg>', page, re.DOTALL
    )
    assert drawn
    assert 'class="band series-0"' in drawn[0]
    assert len(re.findall("half of them from", drawn[0])) == 10  # of twelve parts the first two have no row
    assert 'aria-label="Shares of the most frequent values of sky over time"' in page
    assert "</span>cloud</li>" in page  # several lines are named


async def test_a_view_names_the_alarms_about_its_features_and_no_others(platform: Platform) -> None:
    page = (await (await platform.signed_in("viewer")).get(f"/ui/features/{VIEW}")).text
    assert "wind moved by 0.4 deviations" in page
    assert "mean loss is 0.61" not in page  # an alarm of the same model, about no feature
    assert (
        "No alarm of drift"
        in (await (await platform.signed_in("viewer")).get("/ui/features/old_weather")).text
    )


async def test_a_source_tells_what_its_last_load_brought_and_what_could_not_be_read(
    platform: Platform,
) -> None:
    visitor = await platform.signed_in("viewer")
    assert f'href="/ui/sources/{SOURCE}"' in (await visitor.get("/ui/features")).text
    page = (await visitor.get(f"/ui/sources/{SOURCE}")).text
    assert "owned by operations" in page
    markup = Markup()
    markup.feed(page)
    assert "column 'at' is not" in markup.text
    assert UNREADABLE in markup.text  # a name that whoever writes the files chose
    assert not {"b", "i"} & markup.tags


@pytest.mark.parametrize("path", ["/ui/features/nothing", "/ui/sources/nothing"])
async def test_what_is_not_applied_is_said_to_be_unknown(platform: Platform, path: str) -> None:
    answer = await (await platform.signed_in("viewer")).get(path)
    assert answer.status_code in {404, 409}
    assert "nothing" in answer.text
