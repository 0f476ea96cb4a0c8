"""Environment of a submission: packages at exact versions, and variables, as a value that is recorded with the run."""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

_PINNED = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})*)"
)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
_NEVER = ("TOQUE_", "RAY_", "PIP_", "UV_", "LD_", "PYTHON", "AWS_", "VIRTUAL_ENV", "PATH", "HOME")
_MOST, _LONGEST = 50, 4_096


class Environment(BaseModel):
    """Packages and variables that a submission brings, which only the processes of its run have.

    packages: each as "name==version", with `--hash=sha256:…` if wanted; they are installed from wheels and bring nothing along, so
    what they need is named too. variables: of the processes; they are no secrets, since the record of the run shows them.
    Raises: ValueError for a package without an exact version or named twice, or a variable that is the platform's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    packages: tuple[str, ...] = ()
    variables: dict[str, str] = {}

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
        if twice or len(packages) > _MOST:
            raise ValueError(
                f"packages: {twice or len(packages)} more than once, or more than {_MOST} of them"
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
        wrong = [name for name in variables if not _VARIABLE.fullmatch(name) or name.startswith(_NEVER)]
        if wrong:
            raise ValueError(
                f"variables={wrong[:3]}: a name is of capitals, digits and _, and begins with none of {', '.join(_NEVER)}, which "
                "decide where the platform and its packages come from"
            )
        long = [name for name, value in variables.items() if len(value) > _LONGEST or "\0" in value]
        if long:
            raise ValueError(
                f"variables={long[:3]}: a value has {_LONGEST} characters at most, none of them NUL"
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


def name_of(package: str) -> str:
    """Name of a pinned package as indexes compare it: "Foo.Bar==1" gives "foo-bar". Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", package.partition("==")[0]).lower()


def release_of(package: str) -> str:
    """Name and version of a pinned package, without its hashes."""
    return f"{name_of(package)}=={package.partition('==')[2].partition(' ')[0]}"
