from pathlib import Path

import pytest

from toque.ray_apps.deployment.node_types import autoscaling_file, node_groups

TYPES = {
    "head": {"resources": {"CPU": 0}},
    "serve": {"resources": {"CPU": 8, "serve": 1000}, "min_workers": 2, "max_workers": 6},
    "gpu": {"resources": {"CPU": 8, "GPU": 1}},
}
CONFIG = {"max_workers": 10, "head_node_type": "head", "available_node_types": TYPES}


def test_the_types_are_those_beside_the_head_within_the_limit_of_all():
    assert node_groups(CONFIG) == [
        {"name": "serve", "resources": {"CPU": 8, "serve": 1000}, "min_count": 2, "max_count": 6},
        {"name": "gpu", "resources": {"CPU": 8, "GPU": 1}, "min_count": 0, "max_count": 10},
    ]
    assert {group["name"]: group["max_count"] for group in node_groups(CONFIG | {"max_workers": 3})} == {
        "serve": 3,
        "gpu": 3,
    }


def test_types_whose_resources_the_provider_finds_out_are_not_reported():
    assert node_groups(CONFIG | {"available_node_types": TYPES | {"big": {"max_workers": 2}}}) == []


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["start", "--autoscaling-config=/etc/a.yaml"], Path("/etc/a.yaml")),
        (["start", "--autoscaling-config", "~/a.yaml", "--head"], Path.home() / "a.yaml"),
        (["start", "--head"], None),
    ],
)
def test_the_autoscalers_file_is_found_among_the_arguments(arguments, file):
    assert autoscaling_file(arguments) == file
