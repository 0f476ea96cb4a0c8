import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray.cloudpickle

from toque import functions
from toque.functions import function
from toque.functions.runtime import catalog
from toque.functions.runtime.errors import UnknownFunction


def test_every_function_of_the_platform_can_be_called_by_json() -> None:
    found = [each for each in catalog.discover() if each.reference.startswith("toque.functions.")]
    assert {"build_training_set", "train_tabular", "retrain"} <= {each.name for each in found}
    for each in found:
        assert json.dumps(each.input_schema)
        assert json.dumps(each.output_schema)
        assert each.doc, f"{each.name} says nothing of itself"
        assert catalog.get(each.reference) is each


def test_every_argument_of_the_platform_and_every_field_in_one_says_what_it_means() -> None:
    silent: list[str] = []
    for each in catalog.discover():
        if not each.reference.startswith("toque.functions."):
            continue
        known = {each.name: each.input_schema} | each.input_schema.get("$defs", {})
        silent += [
            f"{owner}.{field}"
            for owner, schema in known.items()
            for field, described in schema.get("properties", {}).items()
            if not re.match(r"\S.*[.)]$", described.get("description", ""), re.DOTALL)
        ]
    assert not silent, "describe them by Annotated[…, Field(description=…)]"


def test_no_function_that_another_test_declared_within_itself_is_in_the_catalog() -> None:
    """Whatever ran before in this process: it may have a name of the platform's, or hold what cannot be pickled."""
    assert not [each.reference for each in catalog.discover() if "<locals>" in each.reference]


def test_every_module_that_declares_a_function_is_found() -> None:
    """A schedule of one that is not never fires."""
    script = (
        "import sys; from toque.functions.runtime import catalog; catalog.discover(); print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    root = Path(functions.__file__).parent
    declaring = [
        each for each in root.rglob("*.py") if re.search(r"^@function\b", each.read_text(), re.MULTILINE)
    ]
    names = [".".join(each.relative_to(root.parents[1]).with_suffix("").parts) for each in declaring]
    assert len(names) > 20
    assert {name.removesuffix(".__init__") for name in names} <= {*found.stdout.split()}


def test_a_name_that_two_modules_declare_is_refused_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_declared", {})

    def make(module: str) -> None:
        def twin(a: int) -> int:
            return a

        twin.__module__, twin.__qualname__ = module, "twin"
        function(twin)

    make("one")
    assert catalog.get("twin").reference == "one:twin"
    make("two")
    with pytest.raises(UnknownFunction, match="one:twin, two:twin"):
        catalog.get("twin")
    assert catalog.get("two:twin").reference == "two:twin"


def test_what_ray_s_workers_get_of_every_function_can_be_pickled() -> None:
    for each in catalog.discover(catalog.PLATFORM):
        assert ray.cloudpickle.dumps(each._worker_body()), each.name
