"""Environment of a submission: packages at exact versions and variables, and the policy of what it may bring.

It is recorded with the run as a value; `in_force` gives the one that the executor marked this process with.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from toque.functions.runtime.errors import InvalidArguments

_PINNED = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})*)"
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
_RESERVED = ("TOQUE_", "RAY_", "PIP_", "UV_", "LD_", "PYTHON", "AWS_", "VIRTUAL_ENV", "PATH", "HOME")
_MOST_PACKAGES, _LONGEST_VALUE = 50, 4_096
EVERY = "*"
"""Name that stands for every workspace in a policy."""
MARKER = "TOQUE_RUN_ENVIRONMENT"
"""Variable that holds the environment of a run's processes, as JSON."""


class Environment(BaseModel, frozen=True, extra="forbid"):
    """Packages and variables that a submission brings, which only the processes of its run have.

    Raises: ValueError for a package without an exact version or named twice, or a variable that is the platform's own.
    """

    packages: tuple[str, ...] = Field(
        default=(),
        description=(
            "Packages as `name==version`, with ` --hash=sha256:…` if wanted, installed from wheels; "
            "they bring nothing along: name what they need too."
        ),
    )
    variables: dict[str, str] = Field(
        default={},
        description=(
            "Environment variables of the processes, by name; no secrets, since the record of the run shows them."
        ),
    )

    @field_validator("packages")
    @classmethod
    def _pinned(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [each for each in packages if not _PINNED.fullmatch(each)]
        if wrong:
            raise ValueError(
                f"packages={wrong[:3]}: name each with its exact version, as in 'lifelines==0.30.0', and optionally "
                "'--hash=sha256:…' after a space"
            )
        names = [name_of(each) for each in packages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or len(packages) > _MOST_PACKAGES:
            raise ValueError(
                f"packages: {twice or len(packages)} more than once, or more than {_MOST_PACKAGES} of them"
            )
        hashed = sum("--hash=" in each for each in packages)
        if hashed not in {0, len(packages)}:
            raise ValueError(
                f"packages: {hashed} of {len(packages)} have a --hash; give one for each, or for none"
            )
        return packages

    @field_validator("variables")
    @classmethod
    def _own(cls, variables: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in variables if not _VARIABLE.fullmatch(name) or name.startswith(_RESERVED)]
        if wrong:
            raise ValueError(
                f"variables={wrong[:3]}: a name is of capitals, digits and _, and begins with none of {', '.join(_RESERVED)}, which "
                "decide where the platform and its packages come from"
            )
        long = [name for name, value in variables.items() if len(value) > _LONGEST_VALUE or "\0" in value]
        if long:
            raise ValueError(
                f"variables={long[:3]}: a value has {_LONGEST_VALUE} characters at most, none of them NUL"
            )
        return variables

    @model_validator(mode="after")
    def _brings_something(self) -> Self:
        if not self.packages and not self.variables:
            raise ValueError("environment={}: name packages or variables, or leave it out")
        return self

    def __str__(self) -> str:
        return " ".join(
            [*self.packages, *(f"{name}={value}" for name, value in sorted(self.variables.items()))]
        )


class EnvironmentRefused(InvalidArguments):
    """Raised if a submission brings what its workspace may not, or where it cannot have it."""


class EnvironmentPolicy(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """Policy of what submissions may bring: nothing by default, since a package's code has the rights of the cluster.

    packages, variables: patterns by workspace, or "*" for each: of names, as in "lifelines", or of releases, as in
    "lifelines==0.30.*". index: a package index's address, or a folder of wheels that every node has; "" for pip's own.
    Raises: ValueError for an address with a password, which Ray would show.
    """

    packages: dict[str, tuple[str, ...]] = {}
    variables: dict[str, tuple[str, ...]] = {}
    index: str = ""

    @field_validator("index")
    @classmethod
    def _without_password(cls, index: str) -> str:
        if "@" in urlsplit(index).netloc:
            raise ValueError(
                "the package index has a user or a password in its address: put them into pip.conf or .netrc of the nodes"
            )
        return index

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read `TOQUE_ENVIRONMENT_PACKAGES`, `TOQUE_ENVIRONMENT_VARIABLES` and `TOQUE_PACKAGE_INDEX`. Raises: ValueError."""
        given: dict[str, Any] = {"index": environment.get("TOQUE_PACKAGE_INDEX") or ""}
        for name in ("packages", "variables"):
            variable = f"TOQUE_ENVIRONMENT_{name.upper()}"
            try:
                given[name] = json.loads(environment.get(variable) or "{}")
                cls.model_validate({name: given[name]})
            except (json.JSONDecodeError, ValidationError) as error:
                raise ValueError(
                    f"{variable}={environment[variable]!r}: want JSON of workspaces, or '*', and lists of patterns: {error}"
                ) from error
        return cls.model_validate(given)

    def check(self, environment: Environment | None, workspace: str, *, on_ray: bool = True) -> None:
        """Check that a workspace may bring an environment, which None never lacks.

        Raises: EnvironmentRefused, naming what it may not and who may let it, or if there is no Ray cluster to make it.
        """
        if environment is None:
            return
        wanted = {
            "packages": [(each, {name_of(each), release_of(each)}) for each in environment.packages],
            "variables": [(each, {each}) for each in environment.variables],
        }
        for kind, named in wanted.items():
            rules: dict[str, tuple[str, ...]] = getattr(self, kind)
            allowed = (*rules.get(EVERY, ()), *rules.get(workspace, ()))
            refused = [each for each, texts in named if not _matches(texts, allowed)]
            if refused:
                raise EnvironmentRefused(
                    f"environment.{kind}={refused[:5]}: workspace {workspace!r} may bring {list(allowed) or 'none'}; an admin "
                    f"allows more by environments.{kind} of the profile"
                )
        if not on_ray:
            raise EnvironmentRefused(
                f"environment={str(environment)!r}: only a Ray cluster makes environments; start one, or leave it out"
            )

    def runtime_env(self, environment: Environment | None) -> dict[str, Any]:
        """Make Ray's runtime environment of one, empty of none: wheels only, whose installation runs no code, and no more than is named."""
        if environment is None:
            return {}
        marked = {MARKER: environment.model_dump_json()}
        found: dict[str, Any] = {"env_vars": {**environment.variables, **marked}}
        if environment.packages:
            options = ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            found["pip"] = {
                "packages": list(environment.packages),
                "pip_check": False,
                "pip_install_options": [*options, *self._from_index()],
            }
        return found

    def _from_index(self) -> list[str]:
        if not self.index:
            return []
        if self.index.startswith(("http://", "https://")):
            return ["--index-url", self.index]
        return ["--no-index", "--find-links", self.index]


NOTHING_BROUGHT = EnvironmentPolicy()
"""Policy of a platform whose profile lets submissions bring nothing."""


def in_force() -> Environment | None:
    """Environment that this process was started with; None if it has the platform's own packages alone."""
    text = os.environ.get(MARKER)
    return Environment.model_validate_json(text) if text else None


def name_of(package: str) -> str:
    """Name of a pinned package as indexes compare it: "Foo.Bar==1" gives "foo-bar". Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", package.partition("==")[0]).lower()


def release_of(package: str) -> str:
    """Name and version of a pinned package, without its hashes."""
    return f"{name_of(package)}=={package.partition('==')[2].partition(' ')[0]}"


def _matches(texts: set[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)
