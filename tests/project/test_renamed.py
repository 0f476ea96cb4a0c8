"""Module paths of the release before."""

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

import featurestore.renamed
import functions.renamed
import registry.renamed
from functions.runtime.reference import current_reference, resolve

RENAMED = registry.renamed.RENAMED | featurestore.renamed.RENAMED | functions.renamed.RENAMED
GONE = sorted(old for old, new in RENAMED.items() if not new.startswith(f"{old}."))


@pytest.mark.parametrize("old", sorted(RENAMED))
def test_what_replaces_an_old_module_exists(old):
    assert find_spec(RENAMED[old]) is not None


@pytest.mark.parametrize(
    "old", ["functions.retraining_policy", "featurestore.pointintime", "registry.run_search"]
)
def test_an_old_path_is_the_new_module_and_says_so(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=RENAMED[old]):
        found = importlib.import_module(old)
    assert found is importlib.import_module(RENAMED[old])
    assert found.__spec__.name == RENAMED[old]


def test_a_name_can_be_taken_from_an_old_path_in_a_process_that_has_seen_nothing():
    code = "from functions.stats.sequential import asymptotic_cs; from registry.run_search import parse_where; print('both')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "both\n"


@pytest.mark.parametrize(
    ("package", "name"),
    [("functions.evaluation.metrics", "log_loss"), ("functions.training.tabular", "train_tabular"),
     ("functions.rollout.evidence", "Evidence"), ("functions.monitoring.drift", "DriftMonitor")],
)  # fmt: skip
def test_a_name_of_a_module_that_became_a_package_goes_on(package, name):
    found = importlib.import_module(package)
    with pytest.warns(DeprecationWarning, match=RENAMED[package]):
        assert getattr(found, name) is getattr(importlib.import_module(RENAMED[package]), name)
    with pytest.raises(AttributeError):
        _ = found.np  # what the module itself had imported was never its own


def test_an_old_reference_finds_its_function():
    assert resolve("functions.features:build_training_set").name == "build_training_set"
    assert resolve("functions.registry_maintenance:tidy_registry").name == "tidy_registry"


def test_an_invocation_of_the_release_before_reads_with_the_reference_of_today():
    assert current_reference("functions.tuning:tune_tabular") == "functions.tuning.jobs:tune_tabular"
    assert current_reference("a.users.module:f") == "a.users.module:f"


def test_no_module_of_ours_is_imported_by_an_old_path():
    code = "import sys; " + "; ".join(
        f"import {each}" for each in ("functions.project", "ray_apps.discovery", "registry", "featurestore")
    )
    code += f"; print([m for m in {GONE!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:functions", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
