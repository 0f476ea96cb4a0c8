"""What CONTRIBUTING.md says to do for a new verb is all there is to do."""

import json
import re
import sys
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context, use_context
from toque.ray_apps.cli.arguments import Given
from toque.ray_apps.cli.declared import find_tables, register
from toque.ray_apps.cli.main import parser
from toque.ray_apps.function_schemas import parameters
from toque.ray_apps.gateway.openapi import with_functions
from toque.ray_apps.gateway.routes.functions import describe
from toque.registry import Role, open_store

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "greeting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    catalog.discover(["greeting"])
    yield catalog.get("greet_model")
    del sys.modules["greeting"], catalog._declared["greet_model"]


def test_its_verb_runs_and_is_described_on_every_face(verb, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    with use_context(Context(store=open_store(url), store_url=url)):
        assert verb.call_json({"model": "flights", "words": 3}) == "Hello flights flights"
        assert verb.submit_json({"model": "flights"}).id
    assert verb.role is Role.viewer
    general = {
        "get": {"operationId": "describe"},
        "post": {"responses": {"200": {"content": {"application/json": {}}}}},
    }
    document = {"paths": {"/functions/{name}": general}, "components": {"schemas": {}}}
    shown = json.dumps(with_functions(document, [verb])["paths"]["/functions/greet_model"])
    assert "Greet a model by its name" in shown
    assert [each.description for each in parameters(verb.input_schema)] == [
        "Name of a registered model.",
        "Number of words of the greeting.",
    ]


def test_its_verb_is_a_command_with_flags_and_a_view(verb, capsys: pytest.CaptureFixture[str]) -> None:
    client = MagicMock()
    described = describe(verb).model_dump(mode="json")
    client.get.side_effect = lambda path, **_: {
        "/functions": [described],
        "/functions/greet_model": described,
    }.get(path, {})
    client.send.side_effect = lambda *_, body: Mock(json=lambda: verb.call_json(body))
    made = parser()
    (table,) = find_tables(client, "models")
    register(made.commands, [table])
    given = made.parse_args(["models", "greet", "flights", "--words", "3"], Given())
    given.client = client
    given.command(given)
    assert capsys.readouterr().out == "flights is greeted: Hello flights flights\n"
    given = made.parse_args(["models", "greet", "flights", "-o", "json"], Given())
    given.client = client
    given.command(given)
    assert json.loads(capsys.readouterr().out) == "Hello flights"
    with pytest.raises(SystemExit):
        made.parse_args(["models", "greet", "--help"])
    assert "Number of words of the greeting (default: 2)" in " ".join(capsys.readouterr().out.split())


def test_its_commands_are_those_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE)
    assert "test-changed" in targets
    for target in targets:
        assert re.search(rf"^([a-z -]* )?{target}( [a-z -]*)?:", makefile, re.MULTILINE), target
