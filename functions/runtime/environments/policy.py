"""Policy of environments: which packages and variables the submissions of a workspace may bring, by the profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from toque.functions.runtime.environments.environment import Environment, name_of, release_of
from toque.functions.runtime.environments.process import MARKER
from toque.functions.runtime.errors import InvalidArguments

EVERY = "*"
"""Name that stands for every workspace in a policy."""


class EnvironmentRefused(InvalidArguments):
    """Raised if a submission brings what its workspace may not, or where it cannot have it."""


class EnvironmentPolicy(BaseModel):
    """Policy of what submissions may bring: nothing by default, since a package's code has the rights of the cluster.

    packages, variables: patterns by workspace, or "*" for each: of names, as in "lifelines", or of releases, as in
    "lifelines==0.30.*". index: a package index's address, or a folder of wheels that every node has; "" for pip's own.
    Raises: ValueError for an address with a password, which Ray would show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

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


def _matches(texts: set[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for text in texts for pattern in patterns)
