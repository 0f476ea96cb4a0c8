"""`toque ui`: the address that it opens signs a browser in."""

import json
from typing import Any

import pytest

from tests.ray_apps.cli.test_cli import run


def test_the_browser_is_opened_at_an_address_with_a_code(
    platform: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    code, out, err = run(capsys, "ui")
    assert code == 0, err
    assert out == f"opened {opened[0]}\n"
    assert "/ui/enter?code=" in opened[0]
    code, out, _ = run(capsys, "--workspace", "default", "ui", "--print", "-o", "json")
    assert json.loads(out)["url"].endswith("&next=/workspaces/default/ui/")
    assert len(opened) == 1
