"""Deployment profile: its sections, and which value counts: the environment's, the file's or the default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE_VARIABLE = "TOQUE_PROFILE"
_APPLIED = "TOQUE_PROFILE_SETS"  # names of the variables that came from the file, and so follow it
_HIDDEN = "…"


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


class Section(BaseModel):
    """Base of the profile's sections: a field that there is not is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Store(Section):
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


class Redis(Section):
    """Section `redis`: features, the prediction log's stream, and what wakes whom.

    url: single, Sentinel or Cluster, with or without TLS, as docs/online-store.md lists them. password_file: holds the
    password, which the url then leaves out. head_url: of the Redis that keeps what the head knows; by default `url`.
    """

    url: Annotated[str, Variable("TOQUE_REDIS_URL", required=True, secret=True)] = ""
    password_file: Annotated[str, Variable("TOQUE_REDIS_PASSWORD_FILE")] = ""
    head_url: Annotated[str, Variable("TOQUE_HEAD_REDIS_URL", secret=True)] = ""


class Audit(Section):
    """Section `audit` of a profile, for the history. key_file: keys of the history that cannot be forged; heads: where its heads are published."""

    key_file: Annotated[str, Variable("TOQUE_AUDIT_KEY_FILE")] = ""
    heads: Annotated[str, Variable("TOQUE_AUDIT_HEADS")] = ""


class Log(Section):
    """Section `log`: how safe a prediction is when it is answered (docs/prediction-log.md).

    mode: None leaves it at the default, `file`. folder: of the write-ahead files on each node.
    """

    mode: Annotated[Literal["file", "redis", "two_nodes"] | None, Variable("TOQUE_LOG_MODE")] = None
    folder: Annotated[str, Variable("TOQUE_WAL")] = ""


class Logging(Section):
    """Section `logging`: lines that processes write (docs/logging.md).

    format: `json` for one object a line. level: least level that is written. access: share of answered requests in the
    access log; above 0 those that the server failed are in it always.
    """

    format: Annotated[Literal["human", "json"], Variable("TOQUE_LOG_FORMAT")] = "human"
    level: Annotated[Literal["debug", "info", "warning", "error"], Variable("TOQUE_LOG_LEVEL")] = "warning"
    access: Annotated[float, Field(ge=0, le=1), Variable("TOQUE_ACCESS_LOG")] = 0.0


class Traces(Section):
    """Section `traces`: which requests are traced, and where spans go (docs/tracing.md).

    endpoint: of a collector that takes OTLP over HTTP; "": spans go nowhere. headers_file: headers for it, as in
    `api-key=…`. share: of the requests that are kept beside failed and slow ones; None: 0.01 with an endpoint, and no
    tracing without one. slow_ms: from which on a request is kept as slow.
    """

    endpoint: Annotated[str, Variable("OTEL_EXPORTER_OTLP_ENDPOINT")] = ""
    headers_file: Annotated[str, Variable("TOQUE_TRACE_HEADERS_FILE")] = ""
    share: Annotated[float | None, Field(ge=0, le=1), Variable("TOQUE_TRACE_SHARE")] = None
    slow_ms: Annotated[float, Field(gt=0), Variable("TOQUE_TRACE_SLOW_MS")] = 500.0


class Metrics(Section):
    """Section `metrics`: where a node's series are, and who may read them without a token (docs/metrics.md).

    folder: of the series on each node; by default in the user's temporary folder. port, bind: where each node's series
    are answered to whoever reaches the address; by default nowhere, and the gateway's `/metrics` has them all.
    haproxy_bind: address of HAProxy's pages of statistics and metrics on each node with a door; by default loopback.
    """

    folder: Annotated[str, Variable("TOQUE_METRICS_FOLDER")] = ""
    port: Annotated[int | None, Field(ge=1, le=65535), Variable("TOQUE_METRICS_PORT")] = None
    bind: Annotated[str, Variable("TOQUE_METRICS_BIND")] = "127.0.0.1"
    haproxy_bind: Annotated[str, Variable("TOQUE_METRICS_ADDRESS")] = ""


class Ports(Section):
    """Section `ports`: where each node of the cluster that has a door answers. http: the API and models; grpc: models."""

    http: Annotated[int, Field(ge=1, le=65535), Variable("TOQUE_HTTP_PORT")] = 8000
    grpc: Annotated[int, Field(ge=1, le=65535), Variable("TOQUE_GRPC_PORT")] = 8001


class Placement(Section):
    """Section `placement`: how the platform's own applications are laid out over the nodes.

    on_serve_nodes: replicas only run where the resource `serve` is. gateway, mlflow, ticker: replicas of each; two or
    more are never all on one node. pool: serve every other registered model from a pool of so many replicas; 0: no.
    pool_memory_gb: for the models of one replica of a pool, as estimated from their files; 0: 1 GiB.
    streams: replicas that follow stream sources; 0: nothing follows them. generative: replicas of the door of language models,
    each with engines of its own; 0: none. generative_max: if it is not 0, as many of them run as it takes, `generative` at least,
    which may be 0 then, and so many at most: for generative_tokens in flight in each (0: for 8 requests), and for 95 % of the first
    tokens to come within generative_first_token_ms (0: whenever they come).
    """

    on_serve_nodes: Annotated[bool, Variable("TOQUE_ON_SERVE_NODES")] = True
    gateway: Annotated[int, Field(ge=1), Variable("TOQUE_GATEWAY_REPLICAS")] = 2
    mlflow: Annotated[int, Field(ge=0), Variable("TOQUE_MLFLOW_REPLICAS")] = 2
    ticker: Annotated[int, Field(ge=1), Variable("TOQUE_TICKER_REPLICAS")] = 2
    pool: Annotated[int, Field(ge=0), Variable("TOQUE_POOL_REPLICAS")] = 0
    pool_memory_gb: Annotated[float, Field(ge=0), Variable("TOQUE_POOL_MEMORY_GB")] = 0.0
    streams: Annotated[int, Field(ge=0), Variable("TOQUE_STREAMS_REPLICAS")] = 0
    generative: Annotated[int, Field(ge=0), Variable("TOQUE_GENERATIVE_REPLICAS")] = 0
    generative_max: Annotated[int, Field(ge=0), Variable("TOQUE_GENERATIVE_MAX_REPLICAS")] = 0
    generative_tokens: Annotated[int, Field(ge=0), Variable("TOQUE_GENERATIVE_TOKENS")] = 0
    generative_first_token_ms: Annotated[float, Field(ge=0), Variable("TOQUE_GENERATIVE_FIRST_TOKEN_MS")] = (
        0.0
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.generative_max:
            if self.generative > self.generative_max:
                raise ValueError(
                    f"generative={self.generative} is more than generative_max={self.generative_max}; raise generative_max"
                )
        elif self.generative_tokens or self.generative_first_token_ms:
            raise ValueError(
                "generative_tokens and generative_first_token_ms scale replicas, and nothing is scaled; say generative_max"
            )
        return self


class Environments(Section):
    """Section `environments`: what submitted trainings may bring beside the platform's own packages (docs/environments.md).

    packages, variables: patterns by workspace, or `*` for each; none by default. index: a package index's address, or a folder of wheels
    that every node has; by default pip's own.
    """

    packages: Annotated[dict[str, tuple[str, ...]], Variable("TOQUE_ENVIRONMENT_PACKAGES")] = {}
    variables: Annotated[dict[str, tuple[str, ...]], Variable("TOQUE_ENVIRONMENT_VARIABLES")] = {}
    index: Annotated[str, Variable("TOQUE_PACKAGE_INDEX")] = ""


class Profile(Section):
    """Deployment profile of a cluster, as its file has it.

    cluster: name, by which the head finds again what it knew. project: module of the definitions, or one for each
    workspace. workspaces: created by `toque deploy` beside those of the projects. models: options of a model's
    predictor that differ from its definition's placement, by name, or `workspace/name`. bind: address that doors listen
    on. node_loss: how soon the head gives up a node that does not answer (docs/high-availability.md). secrets: folder
    with a file for each secret. oidc, prices, alert_hosts: docs/oidc.md, docs/training.md, docs/monitoring.md. console_url: at
    which people reach the gateway, for links in alerts and reports.
    memory_share: of a node's memory that one call may fill before it spreads over the cluster. shard_cache_gb: of a
    node's disk that shards of training data may fill (docs/training-data.md).
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
    logging: Logging = Logging()
    traces: Traces = Traces()
    metrics: Metrics = Metrics()
    audit: Audit = Audit()
    environments: Environments = Environments()
    secrets: Annotated[str, Variable("TOQUE_SECRETS")] = ""
    oidc: Annotated[dict[str, Any] | str | None, Variable("TOQUE_OIDC")] = None
    prices: Annotated[dict[str, Any] | None, Variable("TOQUE_PRICES")] = None
    alert_hosts: Annotated[tuple[str, ...] | None, Variable("TOQUE_ALERT_HOSTS")] = None
    console_url: Annotated[str, Field(pattern=r"^(https?://.+)?$"), Variable("TOQUE_CONSOLE_URL")] = ""
    memory_share: Annotated[float, Field(gt=0, le=1), Variable("TOQUE_MEMORY_SHARE")] = 0.25
    shard_cache_gb: Annotated[float, Field(gt=0), Variable("TOQUE_SHARD_CACHE_GB")] = 16.0


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
