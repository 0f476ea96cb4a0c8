"""Address of Redis as one url tells it: which kind of service, where, as which user, with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

Kind = Literal["server", "sentinel", "cluster", "socket"]
Host = tuple[str, int]

_KINDS: Final[dict[str, Kind]] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS: Final[dict[Kind, int]] = {"server": 6379, "sentinel": 26379, "cluster": 6379, "socket": 0}
_SCHEMES = "redis://, rediss://, redis+sentinel://, rediss+sentinel://, redis+cluster://, rediss+cluster:// or unix://"
FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TEXTS: Final = frozenset({*FILES, "client_name", "service"})
_NUMBERS: Final = frozenset({"socket_timeout", "socket_connect_timeout", "patience"})
_COUNTS: Final = frozenset({"db", "health_check_interval", "max_connections", "protocol"})
_FLAGS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "ssl_check_hostname": tuple(_FLAGS),
    "ssl_cert_reqs": ("required", "none"),
    "sentinel_auth": ("same", "none"),
}
_SETTINGS: Final = sorted({*_TEXTS, *_NUMBERS, *_COUNTS, *_CHOICES})


class InvalidRedisUrl(ValueError):  # noqa: N818 - says what happened, as in toque.registry.errors
    """A part of the url of Redis cannot be used; the message names the part, its value and what to write instead."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Parts of the url of Redis.

    kind: a server, Sentinels that know the server, a Cluster, or a socket file; hosts: at least one, several for
    Sentinel and Cluster; service: name of the master that Sentinel watches; settings: the url's query, by name.
    """

    kind: Kind
    hosts: tuple[Host, ...]
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    path: str = ""
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> RedisAddress:
        """Parse a url of the form `redis[s][+sentinel|+cluster]://[user:password@]host:port[,host:port]/db?setting=…`.

        Raises: InvalidRedisUrl.
        """
        parts = urlsplit(url)
        if parts.scheme == "unix":
            user, password = _user_of(parts.netloc.rpartition("@")[0])
            settings = _settings_of(parts.query, "socket")
            db = settings.pop("db", 0)
            return cls("socket", (), False, user, password, db, unquote(parts.path), settings=settings)
        base, _, kind_name = parts.scheme.partition("+")
        if base not in {"redis", "rediss"} or kind_name not in _KINDS:
            raise InvalidRedisUrl(f"Redis url: scheme {parts.scheme!r} is not known; write {_SCHEMES}")
        kind = _KINDS[kind_name]
        credentials, _, where = parts.netloc.rpartition("@")
        user, password = _user_of(credentials)
        settings = _settings_of(parts.query, kind)
        hosts = _hosts_of(where, kind)
        db, service = _db_of(parts.path, settings.pop("db", None), kind), str(settings.pop("service", ""))
        if (kind == "sentinel") != bool(service):
            raise InvalidRedisUrl(
                f"Redis url: service={service!r}; a +sentinel url ends with ?service=NAME, the master that the Sentinels "
                "watch, and no other url has it"
            )
        return cls(kind, hosts, base == "rediss", user, password, db, "", service, settings)

    @property
    def where(self) -> str:
        """Hosts and service without user and password, for messages."""
        if self.kind == "socket":
            return self.path
        hosts = ",".join(_host_text(host) for host in self.hosts)
        if self.kind == "sentinel":
            return f"{hosts} (Sentinel, service {self.service})"
        return f"{hosts} (Cluster)" if self.kind == "cluster" else hosts


def redis_url_of(environment: Mapping[str, str]) -> str | None:
    """Find the url of Redis: `TOQUE_REDIS_URL`, with the password of the file `TOQUE_REDIS_PASSWORD_FILE`.

    The file counts where the url holds no password, so a url that was merged once stays as it is.
    Raises: InvalidRedisUrl if the url is wrong, or the file is needed and cannot be read.
    """
    url, file = environment.get("TOQUE_REDIS_URL"), environment.get("TOQUE_REDIS_PASSWORD_FILE")
    if not url:
        return None
    if RedisAddress.of(url).password is not None or not file:
        return url
    return _with_password(url, _password_in(Path(file)))


def _password_in(file: Path) -> str:
    try:
        password = file.read_text().strip()
    except OSError as error:
        raise InvalidRedisUrl(
            f"TOQUE_REDIS_PASSWORD_FILE={file}: {error.strerror or error}; name a file that this user can read"
        ) from error
    if not password:
        raise InvalidRedisUrl(
            f"TOQUE_REDIS_PASSWORD_FILE={file}: the file is empty; write the password into it"
        )
    return password


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    credentials, _, where = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{where}"))


def _user_of(credentials: str) -> tuple[str | None, str | None]:
    user, _, password = credentials.partition(":")
    return unquote(user) or None, unquote(password) or None


def _hosts_of(text: str, kind: Kind) -> tuple[Host, ...]:
    hosts = tuple(_host_of(each, _PORTS[kind]) for each in text.split(","))
    if len(hosts) > 1 and kind == "server":
        raise InvalidRedisUrl(
            f"Redis url: {len(hosts)} hosts {text!r} for one server; write redis+sentinel:// or redis+cluster:// for several"
        )
    return hosts


def _host_of(text: str, default_port: int) -> Host:
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = unquote(parts.hostname or ""), parts.port or default_port
    except ValueError as error:
        raise InvalidRedisUrl(
            f"Redis url: host {text!r} ({error}); write host:port, as in 10.0.0.5:6379"
        ) from error
    if not host:
        raise InvalidRedisUrl(f"Redis url: host {text!r} is empty; write host:port, as in 10.0.0.5:6379")
    return host, port


def _host_text(host: Host) -> str:
    return f"[{host[0]}]:{host[1]}" if ":" in host[0] else f"{host[0]}:{host[1]}"


def _db_of(path: str, setting: int | None, kind: Kind) -> int:
    text = path.strip("/")
    if text and not text.isdecimal():
        raise InvalidRedisUrl(f"Redis url: database {text!r} is not a number; end the url with /0")
    db = setting if setting is not None else int(text or 0)
    if db and kind == "cluster":
        raise InvalidRedisUrl(f"Redis url: database {db}; a Cluster has only 0: end the url with /0")
    return db


def _settings_of(query: str, kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _SETTINGS or (name == "sentinel_auth" and kind != "sentinel"):
            raise InvalidRedisUrl(
                f"Redis url: setting {name}={value!r} is not known here; known are {', '.join(_SETTINGS)}"
            )
        found[name] = _setting(name, value)
    return found


def _setting(name: str, value: str) -> Any:
    choices = _CHOICES.get(name)
    if choices is not None:
        if value.lower() not in choices:
            raise InvalidRedisUrl(f"Redis url: {name}={value!r}; write one of {', '.join(choices)}")
        return _FLAGS[value.lower()] if choices == tuple(_FLAGS) else value.lower()
    if name in _TEXTS:
        return value
    try:
        number = float(value) if name in _NUMBERS else int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise InvalidRedisUrl(f"Redis url: {name}={value!r} is not a number of at least 0")
    return number
