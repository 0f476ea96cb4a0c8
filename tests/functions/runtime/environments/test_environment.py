"""What a submission may bring: exact packages, variables of its own, and no more than the profile lets its workspace bring."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.waiting import until
from toque.functions import Demand, function
from toque.functions.runtime.context import Context, context_of, unpacked, use_context
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.environments import Environment, EnvironmentPolicy, EnvironmentRefused, in_force
from toque.functions.runtime.errors import InvocationFailed
from toque.functions.training import TrainingError, train_recipe

POLICY = EnvironmentPolicy(
    packages={"*": ("tiny",), "research": ("lifelines==0.30.*", "torch-*")}, variables={"*": ("OMP_*",)}
)
HASH = "0" * 64


@pytest.fixture
def used(tmp_path: Path) -> Context:
    return replace(context_of({"TOQUE_STORE": f"file://{tmp_path}/store"}), environments=POLICY)


@function(http=True, demand=lambda environment, **_: Demand(environment=environment))
def brings(environment: Environment | None = None) -> str:
    return str(in_force())


@pytest.mark.parametrize(
    "package",
    [
        "tiny",
        "tiny>=1",
        "tiny==1.*",
        "tiny==1 ",
        "tiny @ https://evil.example/tiny.whl",
        "-r /etc/passwd",
        "tiny==1 --index-url https://evil.example",
        "tiny==1\n--index-url https://evil.example",
        "tiny==1 --hash=md5:00",
        "./tiny.whl",
        "git+https://evil.example/tiny",
        "",
    ],
)
def test_a_package_without_an_exact_version_is_refused(package: str) -> None:
    with pytest.raises(
        ValidationError, match=r"name each with its exact version, as in 'lifelines==0\.30\.0'"
    ):
        Environment(packages=(package,))


def test_packages_are_named_once_and_hashed_all_or_none() -> None:
    assert Environment(packages=("tiny==1.0+cpu", "Foo.Bar==2!1.0rc1")).variables == {}
    with pytest.raises(ValidationError, match=r"\['foo-bar'\] more than once"):
        Environment(packages=("foo_bar==1", "Foo.Bar==2"))
    with pytest.raises(ValidationError, match="1 of 2 have a --hash"):
        Environment(packages=(f"a==1 --hash=sha256:{HASH}", "b==1"))
    with pytest.raises(ValidationError, match="name packages or variables, or leave it out"):
        Environment()


@pytest.mark.parametrize(
    "name",
    ["PATH", "LD_PRELOAD", "PYTHONPATH", "PIP_INDEX_URL", "TOQUE_STORE", "RAY_ADDRESS", "lower", "A=B", ""],
)
def test_a_variable_that_is_the_platforms_own_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="a name is of capitals, digits and _"):
        Environment(variables={name: "x"})
    assert Environment(variables={"NCCL_DEBUG": "INFO"}).packages == ()


def test_a_workspace_brings_what_the_profile_lets_it() -> None:
    POLICY.check(Environment(packages=("tiny==1",), variables={"OMP_WAIT_POLICY": "active"}), "default")
    POLICY.check(Environment(packages=("Lifelines==0.30.2", "torch_geometric==2")), "research")
    POLICY.check(None, "default")
    for package in ("lifelines==0.30.2", "torch-geometric==2"):
        with pytest.raises(
            EnvironmentRefused, match=r"workspace 'default' may bring \['tiny'\]; an admin allows more"
        ):
            POLICY.check(Environment(packages=(package,)), "default")
    with pytest.raises(EnvironmentRefused, match=re.escape("['lifelines==0.31.0']")):
        POLICY.check(Environment(packages=("tiny==1", "lifelines==0.31.0")), "research")
    with pytest.raises(
        EnvironmentRefused, match=r"environment.variables=\['NCCL_DEBUG'\]: .* by environments.variables"
    ):
        POLICY.check(Environment(variables={"NCCL_DEBUG": "INFO"}), "research")
    with pytest.raises(EnvironmentRefused, match="may bring none"):
        EnvironmentPolicy().check(Environment(packages=("tiny==1",)), "default")


def test_the_policy_comes_from_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        f"store: {{url: 'file://{tmp_path}/store'}}\nenvironments: {{packages: {{research: [tiny]}}, index: /wheels}}\n"
    )
    found = context_of({"TOQUE_PROFILE": str(profile)}).environments
    assert found == EnvironmentPolicy(packages={"research": ("tiny",)}, index="/wheels")
    wrong = {"TOQUE_STORE": f"file://{tmp_path}/store", "TOQUE_ENVIRONMENT_PACKAGES": '["tiny"]'}
    with pytest.raises(ValueError, match=r"TOQUE_ENVIRONMENT_PACKAGES=.* want JSON of workspaces"):
        context_of(wrong)


def test_only_what_is_named_is_installed_and_installing_runs_no_code_of_it() -> None:
    tiny = Environment(packages=("tiny==1",), variables={"OMP_NUM_THREADS": "1"})
    found = replace_index("").runtime_env(tiny)
    assert found["pip"]["packages"] == ["tiny==1"]
    assert found["pip"]["pip_install_options"] == [
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ]
    assert found["env_vars"]["OMP_NUM_THREADS"] == "1"
    assert replace_index("https://pypi.example.com/simple").runtime_env(tiny)["pip"]["pip_install_options"][-2:] == [
        "--index-url", "https://pypi.example.com/simple",
    ]  # fmt: skip
    assert replace_index("/wheels").runtime_env(tiny)["pip"]["pip_install_options"][-3:] == [
        "--no-index",
        "--find-links",
        "/wheels",
    ]
    assert "pip" not in POLICY.runtime_env(Environment(variables={"OMP_NUM_THREADS": "1"}))
    assert POLICY.runtime_env(None) == {}


def test_an_index_has_no_password_in_its_address() -> None:
    with pytest.raises(ValueError, match=r"put them into pip\.conf or \.netrc of the nodes") as told:
        context_of({"TOQUE_PACKAGE_INDEX": "https://ada:hunter2@pypi.example.com/simple"})
    assert "hunter2" not in str(told.value)


def replace_index(index: str) -> EnvironmentPolicy:
    return POLICY.model_copy(update={"index": index})


def test_a_submission_is_told_at_once_what_it_may_not_bring(used: Context) -> None:
    with use_context(used), pytest.raises(EnvironmentRefused, match=r"environment.packages=\['evil==1'\]"):
        brings.submit_json({"environment": {"packages": ["evil==1"]}})


def test_who_starts_a_submission_checks_it_again_and_needs_a_cluster(used: Context) -> None:
    tiny = Environment(packages=("tiny==1",))
    with use_context(used):
        submitted = brings.submit(tiny)
        with pytest.raises(
            InvocationFailed, match=r"EnvironmentRefused: .*only a Ray cluster makes environments"
        ):
            submitted.result(60)
        assert submitted.record().lost == 0
        again = brings.submit(tiny)
        strict = Executor(replace(used, environments=EnvironmentPolicy()), Ledger(used.store, actor="strict"))
        until(lambda: strict.poll() >= 0 and again.status() == "dead")
        failure = again.record().failure
        assert failure is not None
        assert "may bring none" in failure.message
        assert brings.submit().result(60) == "None"


def test_a_training_that_is_called_has_no_environment(used: Context) -> None:
    with use_context(replace(used, project="tests.functions.training.recipes")):
        with pytest.raises(TrainingError, match="only a submitted call has one"):
            train_recipe("m", "sums", environment=Environment(packages=("tiny==1",)))
        assert used.registry().search_runs("m") == []


def test_a_context_without_a_policy_can_be_read_by_who_knows_none(used: Context) -> None:
    bare = replace(used, environments=EnvironmentPolicy())
    assert b"environments" not in bare.packed()
    again = unpacked(bare.packed())
    assert again.environments == EnvironmentPolicy()
    assert again.packed() == bare.packed()
    assert unpacked(used.packed()).environments == POLICY
