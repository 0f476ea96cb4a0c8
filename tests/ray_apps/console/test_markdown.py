"""Markdown of people is rendered beside the event loop, and shown as it stands where that would take long."""

import threading
from pathlib import Path

import pytest

from tests.ray_apps.console.conftest import Platform
from tests.ray_apps.console.sample_platform import MODEL
from toque.ray_apps.console.pages import models
from toque.ray_apps.console.pages.models import render_markdown
from toque.ray_apps.mlflow.models import CreateModel, DescribeModel
from toque.ray_apps.mlflow.versions import CreateVersion
from toque.registry import InvalidInput, Registry, open_store
from toque.registry.models.decisions import LONGEST_DESCRIPTION


async def test_a_card_is_rendered_beside_the_event_loop(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def render(text: str) -> object:
        threads.append(threading.get_ident())
        return render_markdown(text)

    monkeypatch.setattr(models, "render_markdown", render)
    visitor = await platform.signed_in("viewer")
    assert (await visitor.get(f"/ui/models/{MODEL}/versions/1")).status_code == 200
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize("part", ["![[", "[", "*a_", "[a](", "~~a", "`"])
def test_texts_that_take_the_square_of_their_length_are_shown_as_they_stand(part: str) -> None:
    assert render_markdown(part * 10_000).startswith("<pre>")
    assert "<h1>" in render_markdown("# Card" + f"\n\n{part}" * 100)


def test_a_long_text_is_shown_escaped_and_cut() -> None:
    shown = render_markdown("<script>alert(1)</script>" * 50_000)
    assert "<script>" not in shown
    assert "(1,250,000 characters)" in shown
    assert len(shown) < 2_000_000


def test_no_door_takes_a_description_that_is_too_long(tmp_path: Path) -> None:
    registry = Registry(open_store((tmp_path / "store").as_uri()), actor="ada")
    (tmp_path / "model.txt").write_text("tree")
    fits, long = "x" * LONGEST_DESCRIPTION, "x" * (LONGEST_DESCRIPTION + 1)
    registry.create_model("m", description=fits)
    assert registry.create_version("m", tmp_path / "model.txt", description=fits).description == fits
    assert registry.set_model_tags("m", {}, description=fits).description == fits
    for change in (
        lambda: registry.create_model("other", description=long),
        lambda: registry.create_version("m", tmp_path / "model.txt", description=long),
        lambda: registry.set_model_tags("m", {}, description=long),
    ):
        with pytest.raises(InvalidInput, match="at most 20,000"):
            change()
    for body in (
        lambda: CreateVersion(name="m", source="runs:/a/m", description=long),
        lambda: CreateModel(name="m", description=long),
        lambda: DescribeModel(name="m", description=long),
    ):
        with pytest.raises(ValueError, match="at most 20000 characters"):
            body()
