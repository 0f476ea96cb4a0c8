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

from clusters.profile.errors import ProfileError
from clusters.profile.sections import Profile, Section, Store, Variable

FILE_VARIABLE = "TOQUE_PROFILE"
_APPLIED = "TOQUE_PROFILE_SETS"  # names of the variables that came from the file, and so follow it
_HIDDEN = "…"


<<<<<<< HEAD:clusters/profile.py
class ProfileError(ValueError):
    """Raised for a profile that cannot be read, and for a process that lacks a setting, by name."""


@dataclass(frozen=True, slots=True)
class Variable:
    """The environment variable that a field of the profile stands for.

    required: a process of a cluster does not start without it. secret: its value is never shown.
    """

    name: str
    required: bool = False
    secret: bool = False


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Store(_Section):
    """Section `store`: where everything is kept.

    url: `s3://bucket/prefix`, or `file:///folder` on a file system that all nodes share. region, endpoint, sse, kms_key:
    become part of the url, and so reach every client. credentials_file, credentials_profile: of the AWS files; by
    default the credentials are whatever boto3 finds, such as a node's role.
    """

    url: Annotated[str, Variable("TOQUE_STORE", required=True)] = ""
    region: str = ""
    endpoint: str = ""
    sse: str = ""
    kms_key: str = ""
    credentials_file: Annotated[str, Variable("AWS_SHARED_CREDENTIALS_FILE")] = ""
    credentials_profile: Annotated[str, Variable("AWS_PROFILE")] = ""

    def address(self) -> str:
        """Build the url with its settings as a query."""
        given = {name: getattr(self, name) for name in ("region", "endpoint", "sse", "kms_key")}
        given = {name: value for name, value in given.items() if value}
        if not given:
            return self.url
        parts = urlsplit(self.url)
        query = dict(parse_qsl(parts.query)) | given
        text = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in query.items())
        return urlunsplit(parts._replace(query=text))


class Redis(_Section):
    """Section `redis`: features, the prediction log's stream, and what wakes whom.

    url: single, Sentinel or Cluster, with or without TLS, as docs/online-store.md lists them. password_file: holds the
    password, which the url then leaves out. head_url: of the Redis that keeps what the head knows; by default `url`.
    """

    url: Annotated[str, Variable("TOQUE_REDIS_URL", required=True, secret=True)] = ""
    password_file: Annotated[str, Variable("TOQUE_REDIS_PASSWORD_FILE")] = ""
    head_url: Annotated[str, Variable("TOQUE_HEAD_REDIS_URL", secret=True)] = ""


class Audit(_Section):
    """Section `audit` of a profile, for the history. key_file: keys of the history that cannot be forged; heads: where its heads are published."""

    key_file: Annotated[str, Variable("TOQUE_AUDIT_KEY_FILE")] = ""
    heads: Annotated[str, Variable("TOQUE_AUDIT_HEADS")] = ""


class Log(_Section):
    """Section `log`: how safe a prediction is when it is answered (docs/prediction-log.md).

    mode: None leaves it at the default, `file`. folder: of the write-ahead files on each node.
    """

    mode: Annotated[Literal["file", "redis", "two_nodes"] | None, Variable("TOQUE_LOG_MODE")] = None
    folder: Annotated[str, Variable("TOQUE_WAL")] = ""


class Ports(_Section):
    """Section `ports`: where each node of the cluster that has a door answers. http: the API and models; grpc: models."""

    http: Annotated[int, Field(ge=1, le=65535), Variable("TOQUE_HTTP_PORT")] = 8000
    grpc: Annotated[int, Field(ge=1, le=65535), Variable("TOQUE_GRPC_PORT")] = 8001


class Placement(_Section):
    """Section `placement`: how the platform's own applications are laid out over the nodes.

    on_serve_nodes: replicas only run where the resource `serve` is. gateway, mlflow, ticker: replicas of each; two or
    more are never all on one node. pool: serve every other registered model from a pool of so many replicas; 0: no.
    """

    on_serve_nodes: Annotated[bool, Variable("TOQUE_ON_SERVE_NODES")] = True
    gateway: Annotated[int, Field(ge=1), Variable("TOQUE_GATEWAY_REPLICAS")] = 2
    mlflow: Annotated[int, Field(ge=0), Variable("TOQUE_MLFLOW_REPLICAS")] = 2
    ticker: Annotated[int, Field(ge=1), Variable("TOQUE_TICKER_REPLICAS")] = 2
    pool: Annotated[int, Field(ge=0), Variable("TOQUE_POOL_REPLICAS")] = 0


class Profile(_Section):
    """Deployment profile of a cluster, as its file has it.

    cluster: name, by which the head finds again what it knew. project: module of the definitions, or one for each
    workspace. workspaces: created by `toque deploy` beside those of the projects. models: options of a model's
    predictor that differ from its definition's placement, by name, or `workspace/name`. bind: address that doors listen
    on. node_loss: how soon the head gives up a node that does not answer (docs/high-availability.md). secrets: folder with a file for each secret. oidc, prices, alert_hosts: docs/oidc.md, docs/training.md,
    docs/monitoring.md.
    """

    cluster: Annotated[str, Variable("TOQUE_CLUSTER_NAME")] = "toque"
    store: Store = Store()
    redis: Redis = Redis()
    project: Annotated[str | dict[str, str] | None, Variable("TOQUE_PROJECT")] = None
    workspaces: Annotated[tuple[str, ...], Variable("TOQUE_WORKSPACES")] = ()
    models: Annotated[dict[str, dict[str, Any]], Variable("TOQUE_MODELS")] = {}
    bind: Annotated[str, Variable("TOQUE_BIND")] = "0.0.0.0"  # noqa: S104  # every port asks for a token
    ports: Ports = Ports()
    node_loss: Annotated[Literal["patient", "fast"], Variable("TOQUE_NODE_LOSS")] = "patient"
    placement: Placement = Placement()
    log: Log = Log()
    audit: Audit = Audit()
    secrets: Annotated[str, Variable("TOQUE_SECRETS")] = ""
    oidc: Annotated[dict[str, Any] | str | None, Variable("TOQUE_OIDC")] = None
    prices: Annotated[dict[str, Any] | None, Variable("TOQUE_PRICES")] = None
    alert_hosts: Annotated[tuple[str, ...] | None, Variable("TOQUE_ALERT_HOSTS")] = None


=======
>>>>>>> 2651242 (clusters: the profile's sections and what counts are two modules):clusters/profile/settings.py
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
    if name in {"models", "prices"} or (name == "oidc" and text.lstrip().startswith("{")):
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
