"""Sections of the deployment profile, and the environment variable that each of their fields stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator


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
