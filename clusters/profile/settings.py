"""Reads a deployment profile, and settles which value counts: the environment's, the file's or the default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import BaseModel, ValidationError

from toque.clusters.profile.errors import ProfileError
from toque.clusters.profile.sections import Profile, Section, Store, Variable

FILE_VARIABLE = "TOQUE_PROFILE"
_APPLIED = "TOQUE_PROFILE_SETS"  # names of the variables that came from the file, and so follow it
_HIDDEN = "…"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a process has it.

    name: in the profile, as in `store.url`; value: as its variable's text, "" if unset; source: `default`, the path of
    the profile, or `environment`.
    """

    name: str
    variable: Variable
    value: str
    source: str

    @property
    def shown(self) -> str:
        """The value, or for a secret what of it may be shown."""
        if not self.value or not self.variable.secret:
            return self.value
        parts = urlsplit(self.value)
        if parts.scheme and parts.hostname:
            hosts = parts.netloc.rpartition("@")[2]
            netloc = f"{_HIDDEN}@{hosts}" if "@" in parts.netloc else hosts
            return urlunsplit(parts._replace(netloc=netloc, query=_HIDDEN if parts.query else ""))
        return _HIDDEN


def read_profile(path: Path) -> Profile:
    """Read the profile in a file. Raises: ProfileError, naming the file, the field, its value and what is wanted."""
    try:
        content = yaml.safe_load(path.read_text()) or {}
        return Profile.model_validate(content)
    except OSError as error:
        raise ProfileError(f"{FILE_VARIABLE}={path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ProfileError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(each) for each in error.errors())
        raise ProfileError(f"{path}: {problems}") from error


def _problem(error: Any) -> str:
    name = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such setting; `toque config` lists those there are"
    return f"{name}={error['input']!r}: {error['msg']}"


def profile_of(environment: Mapping[str, str]) -> Profile:
    """Read the environment's profile; without a file, one of defaults. Raises: ProfileError."""
    file = environment.get(FILE_VARIABLE)
    return read_profile(Path(file)) if file else Profile()


def effective_profile(environment: Mapping[str, str]) -> Profile:
    """Read the environment's profile with the variables that take precedence over it.

    Raises: ProfileError, naming the field, the value and what is wanted.
    """
    content = profile_of(environment).model_dump(mode="json")
    content["store"] = {name: content["store"][name] for name in ("credentials_file", "credentials_profile")}
    for setting in settings_of(environment):
        *sections, name = setting.name.split(".")
        place = content
        for section in sections:
            place = place[section]
        if setting.source == "environment" or setting.name == "store.url":
            place[name] = _from_text(name, setting.value)
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise ProfileError("; ".join(_problem(each) for each in error.errors())) from error


def settings_of(environment: Mapping[str, str]) -> list[Setting]:
    """List every setting as a process with this environment has it. Raises: ProfileError."""
    file = environment.get(FILE_VARIABLE, "")
    applied = environment.get(_APPLIED, "").split()
    defaults = {name: text for name, _, text in _variables(Profile())}
    found = []
    for name, variable, text in _variables(profile_of(environment)):
        value, source = text, file if text != defaults[name] else "default"
        if environment.get(variable.name) and variable.name not in applied:
            value, source = environment[variable.name], "environment"
        found.append(Setting(name, variable, value, source))
    return found


def missing_settings(environment: Mapping[str, str]) -> list[Setting]:
    """List the settings that a cluster's process needs and this environment lacks. Raises: ProfileError."""
    return [each for each in settings_of(environment) if each.variable.required and not each.value]


def require_settings(environment: Mapping[str, str]) -> None:
    """Check that an environment has what a cluster's process needs. Raises: ProfileError, naming what is missing."""
    missing = missing_settings(environment)
    if missing:
        names = ", ".join(f"{each.name} ({each.variable.name})" for each in missing)
        file = environment.get(FILE_VARIABLE)
        where = f"into {file}" if file else f"into a profile that {FILE_VARIABLE} names, or set the variable"
        raise ProfileError(f"this node lacks {names}; put it {where}")


def apply_profile(environment: MutableMapping[str, str]) -> None:
    """Put the settings of the profile into `environment`, where no variable was set by somebody else.

    Values that came from an earlier reading of the file follow the file. Without a profile nothing changes.
    Raises: ProfileError.
    """
    if not environment.get(FILE_VARIABLE):
        return
    # Processes that inherit the environment may start in another folder.
    environment[FILE_VARIABLE] = str(Path(environment[FILE_VARIABLE]).expanduser().absolute())
    ours = set()
    before = environment.get(_APPLIED, "").split()
    for setting in settings_of(environment):
        if setting.source == "environment":
            continue
        if setting.value and setting.source != "default":
            environment[setting.variable.name] = setting.value
            ours.add(setting.variable.name)
        elif setting.variable.name in before:
            environment.pop(setting.variable.name, None)
    environment[_APPLIED] = " ".join(sorted(ours))


def _variables(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Variable, str]]:
    """Iterate over a section's settings: name, variable and value as text."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _variables(value, f"{prefix}{name}.")
        for variable in field.metadata:
            if isinstance(variable, Variable):
                given = (
                    section.address()
                    if isinstance(section, Store) and name == "url"
                    else _as_text(name, value)
                )
                yield f"{prefix}{name}", variable, given


def _from_text(name: str, text: str) -> Any:
    """Parse a variable's text into what the field takes. Raises: ProfileError."""
    if name in {"workspaces", "alert_hosts"}:
        return [each.strip() for each in text.split(",") if each.strip()]
    if name in {"models", "prices", "packages", "variables"} or (
        name == "oidc" and text.lstrip().startswith("{")
    ):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ProfileError(f"{name}={text!r}: want JSON: {error}") from error
    return text


def _as_text(name: str, value: Any) -> str:
    """Write a value as the variable's reader wants it."""
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        return ",".join(value) or ("," if name == "alert_hosts" else "")
    if isinstance(value, dict):
        if name == "project":
            return ",".join(f"{workspace}={module}" for workspace, module in value.items())
        return json.dumps(value)
    return str(value)
