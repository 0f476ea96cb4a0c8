"""The page of metrics lists what the code declares, and names keep Prometheus's rules."""

import ast
import re
from pathlib import Path

from tests.project.metrics_page import PAGE, page_with_table
from toque.ray_apps.exporter import DECLARED_IN, all_series

ROOT = Path(__file__).parents[2]
ROOMS = ("clusters", "registry", "featurestore", "functions", "ray_apps")
KINDS = {"Counter", "Gauge", "Histogram", "Summary"}
UNITS = ("seconds", "bytes", "ratio", "info")


def test_the_page_lists_every_series_of_the_code() -> None:
    text = PAGE.read_text()
    assert text == page_with_table(text), "run `python -m tests.project.metrics_page`"


def test_every_module_that_declares_a_series_is_listed() -> None:
    declaring = set()
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and str(first.value).startswith("toque_"):
                    declaring.add(".".join(("toque", *file.relative_to(ROOT).with_suffix("").parts)))
    assert declaring == set(DECLARED_IN)


def test_names_and_labels_keep_the_rules() -> None:
    found = all_series()
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert re.fullmatch(r"toque_[a-z0-9]+(_[a-z0-9]+)+", each.name) or each.name in {
            "toque_processes",
            "toque_spans",
        }, each
        assert each.text.endswith("."), each
        assert not {"node", "instance", "job", "le", "pid"} & set(each.labels), each
        assert not each.name.endswith(("_total", "_count", "_sum", "_bucket")), each
        if each.kind == "histogram":
            assert each.name.endswith(UNITS), each
