"""Context of a run: the store, Redis, the clock, the acting user, and all else that is no argument.

The only module of the runtime that reads the environment (the profile that `TOQUE_PROFILE` names, `TOQUE_STORE`,
`TOQUE_REDIS_URL` and its password file, `TOQUE_PROJECT`, `TOQUE_WORKSPACE`, `TOQUE_CLOCK`, `TOQUE_ACTOR`, `TOQUE_SECRETS`,
`TOQUE_PRICES`, `TOQUE_ALERT_HOSTS`, `TOQUE_CONSOLE_URL`, `TOQUE_LOG_MODE`, `TOQUE_WAL`, `TOQUE_MEMORY_SHARE`, `TOQUE_SHARD_CACHE_GB`,
`TOQUE_ENVIRONMENT_PACKAGES`, `TOQUE_ENVIRONMENT_VARIABLES`, `TOQUE_PACKAGE_INDEX`, the audit keys, and secrets by their
names). A context is sent along with every remote run, so that a worker uses the same store and clock as the caller; the
keys are not, and each process reads its own.
"""

from __future__ import annotations

import getpass
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from toque.clusters.profile import apply_profile, require_settings
from toque.clusters.redis_clients import redis_url_of
from toque.clusters.telemetry import set_up
from toque.functions.runtime.changes import announcer_of
from toque.functions.runtime.clock import Clock, clock_named, system_clock
from toque.functions.runtime.environments import NOTHING_BROUGHT, EnvironmentPolicy
from toque.functions.runtime.receipt import Prices
from toque.functions.runtime.secret import redact, secret_value
from toque.registry.access import DEFAULT_WORKSPACE, check_workspace, split_workspace_url, workspace_url
from toque.registry.audit_keys import AuditKeys
from toque.registry.store import ObjectStore, open_store

if TYPE_CHECKING:
    from toque.featurestore import FeatureStore
    from toque.registry import Registry

DEFAULT_STORE = ".toque/store"
DEFAULT_MEMORY_SHARE = 0.25
DEFAULT_SHARD_CACHE_BYTES = 16 * 10**9
DEFAULT_KEY_FILE = ".toque/keys/audit"
_SHARED = "shared"  # actor of a context in whose name nothing is written
_IN_A_CLUSTER = "RAY_RAYLET_PID"  # Ray gives it to its worker processes


@dataclass(frozen=True)
class Context:
    """Store, clock, actor and settings that a run uses beside its arguments.

    store, store_url: the object store of the workspace; redis_url: None without Redis; project: module of the
    workspace's definitions; workspace: its name; projects: workspace and module of every project of the platform;
    clock: the platform's time; actor: who acts, written into every journal entry; chain: the functions that caused
    this run by events, oldest first, which shows loops; secrets_dir: a folder with a file for each secret, as
    Kubernetes, Docker and systemd mount them; invocation: the durable invocation
    that a run belongs to; log_mode, log_folder: of the prediction log, empty and None for the defaults; prices: of CPU
    and GPU hours, for the receipts of trainings, None if unknown; console_url: at which people reach the gateway, for links;
    memory_share: of a node's memory that one call may
    fill, before it spreads over the cluster; shard_cache_bytes: of a node's disk that shards of training data may fill;
    environments: what submissions may bring.
    """

    store: ObjectStore
    store_url: str
    redis_url: str | None = None
    project: str | None = None
    clock: Clock = system_clock
    actor: str = "local"
    chain: tuple[str, ...] = ()
    secrets_dir: str | None = None
    invocation: str | None = None
    prices: Prices | None = None
    workspace: str = DEFAULT_WORKSPACE
    projects: tuple[tuple[str, str], ...] = ()
    alert_hosts: tuple[str, ...] | None = None
    console_url: str | None = None
    log_mode: str = ""
    log_folder: str | None = None
    memory_share: float = DEFAULT_MEMORY_SHARE
    shard_cache_bytes: int = DEFAULT_SHARD_CACHE_BYTES
    environments: EnvironmentPolicy = NOTHING_BROUGHT

    def in_workspace(self, name: str) -> Context:
        """Return this context in another workspace of the platform. Raises: InvalidInput for a malformed name."""
        if name == self.workspace:
            return self
        url = workspace_url(self.platform_url, name)
        project = dict(self.projects).get(name)
        store = open_store(url, audit_keys=self.store.audit_keys, announce=announcer_of(self.redis_url))
        return replace(self, workspace=name, store=store, store_url=url, project=project)

    def as_actor(self, actor: str) -> Context:
        """Return this context with another actor, for whom the registry need not be read again."""
        return _sharing(self, replace(self, actor=actor))

    @property
    def platform_url(self) -> str:
        """URL of the platform's store, of which each workspace has a part."""
        return (
            split_workspace_url(self.store_url)[0] if self.workspace != DEFAULT_WORKSPACE else self.store_url
        )

    def page(self, *parts: str, **query: str) -> str | None:
        """Address of a page of the console in this workspace; None if it is not known where people reach the console."""
        if self.console_url is None:
            return None
        below = "" if self.workspace == DEFAULT_WORKSPACE else f"/workspaces/{self.workspace}"
        path = "/".join((f"{below}/ui", *(quote(part, safe="") for part in parts)))
        return f"{self.console_url.rstrip('/')}{path}{f'?{urlencode(query)}' if query else ''}"

    def sees(self, reference: str) -> bool:
        """Whether the function `reference` ("module:qualname") may run in this workspace.

        A function of a project belongs to the workspaces of that project; those of the platform and of modules
        outside of all projects belong to every workspace.
        """
        module = reference.partition(":")[0]
        owners = [
            (len(project), workspace)
            for workspace, project in self.projects
            if module == project or module.startswith(f"{project}.")
        ]
        longest = max(owners, default=None)
        return longest is None or (longest[0], self.workspace) in owners

    def secret(self, name: str) -> str:
        """Return the secret `name`, which the running function must declare. Raises: UndeclaredSecret."""
        return secret_value(name)

    def find_secret(self, name: str) -> str | None:
        """Look up a secret: its file in `secrets_dir`, else the environment variable, else None.

        The file is read each time, so that a replaced one counts from the next run on; a final line end is
        not part of the value.
        """
        file = Path(self.secrets_dir, name) if self.secrets_dir else None
        if file is not None and file.is_file():
            return file.read_text().removesuffix("\n")
        return os.environ.get(name)

    def registry(self) -> Registry:
        """Open the model registry in the store, acting as `actor`."""
        return self._registry

    def features(self) -> FeatureStore:
        """Open the feature store in the store and Redis, on the platform's clock."""
        return self._features

    @cached_property
    def _registry(self) -> Registry:
        from toque.registry import Registry  # late: a run that uses neither does not wait for the import

        origin: Context | None = vars(self).get("_origin")
        if origin is not None:
            return origin.registry().as_actor(self.actor)
        return Registry(self.store, actor=self.actor, clock=self.clock)

    @cached_property
    def _features(self) -> FeatureStore:
        from toque.featurestore import FeatureStore  # late: as above

        return FeatureStore(
            self.store, self.redis_url, project=self.workspace, clock=self.clock, actor=self.actor
        )

    @cached_property
    def _packed(self) -> bytes:
        return pickle.dumps(self)

    def packed(self) -> bytes:
        """Pickle the context for another process of ours, once for all runs that it is sent with."""
        return self._packed

    def __getstate__(self) -> dict[str, object]:
        found = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        if (
            self.environments == NOTHING_BROUGHT
        ):  # then workers of the release before, which know none, can read it
            found.pop("environments", None)
        return found


_used: ContextVar[Context | None] = ContextVar("toque_context", default=None)


def context() -> Context:
    """Return the context in use, else the process's own, read once from the environment."""
    return _used.get() or _of_process()


@lru_cache(maxsize=8)
def unpacked(data: bytes) -> Context:
    """Unpickle a context; equal bytes give the same object, with its registry and feature store.

    Those that differ in the acting user, the causes and the invocation alone share what their registries have read.
    """
    found = _loaded(data)
    shared = replace(found, actor=_SHARED, chain=(), invocation=None)
    return _sharing(_shared_context(shared.packed()), found)


@lru_cache(maxsize=8)
def _shared_context(data: bytes) -> Context:
    return _loaded(data)


def _sharing(origin: Context, made: Context) -> Context:
    """Have the registry of a context go on from what the registry of another has read."""
    vars(made)["_origin"] = origin
    return made


def _loaded(data: bytes) -> Context:
    found: Context = pickle.loads(data)  # noqa: S301  # our own process's bytes, never a store's
    return found


@contextmanager
def use_context(used: Context) -> Iterator[Context]:
    """Make `context()` return `used` within the block, in this thread and in runs started from it."""
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)


def context_of(environment: Mapping[str, str]) -> Context:
    """Make a context from the profile and environment variables; the default store is the folder `.toque/store` here.

    A worker process of a cluster has no such default. Raises: ProfileError if it lacks its settings; ValueError if
    `TOQUE_PRICES` is not the JSON of `Prices`, `TOQUE_PROJECT` cannot be read, `TOQUE_MEMORY_SHARE` is no share, or
    `TOQUE_REDIS_URL` or its password file is wrong.
    """
    environment = dict(environment)
    apply_profile(environment)
    if _IN_A_CLUSTER in environment and not environment.get("TOQUE_STORE"):
        require_settings(environment)
    url = environment.get("TOQUE_STORE") or f"file://{Path(DEFAULT_STORE).resolve()}"
    redis_url = redis_url_of(environment)
    projects = projects_of(environment.get("TOQUE_PROJECT") or "")
    platform = Context(
        store=open_store(url, audit_keys=_audit_keys(environment), announce=announcer_of(redis_url)),
        store_url=url,
        redis_url=redis_url,
        project=projects.get(DEFAULT_WORKSPACE),
        clock=clock_named(environment.get("TOQUE_CLOCK") or "system", redis_url),
        actor=environment.get("TOQUE_ACTOR") or getpass.getuser(),
        secrets_dir=environment.get("TOQUE_SECRETS") or None,
        prices=Prices.of_environment(environment),
        projects=tuple(projects.items()),
        alert_hosts=_hosts_of(environment.get("TOQUE_ALERT_HOSTS")),
        console_url=_web_address(environment.get("TOQUE_CONSOLE_URL")),
        log_mode=environment.get("TOQUE_LOG_MODE") or "",
        log_folder=environment.get("TOQUE_WAL") or None,
        memory_share=_share_of(environment.get("TOQUE_MEMORY_SHARE")),
        shard_cache_bytes=_cache_bytes_of(environment.get("TOQUE_SHARD_CACHE_GB")),
        environments=EnvironmentPolicy.of_environment(environment),
    )
    return platform.in_workspace(environment.get("TOQUE_WORKSPACE") or DEFAULT_WORKSPACE)


def set_up_worker() -> None:
    """Set up logs and traces of a process that runs functions for others, once, as its environment says."""
    set_up("function", os.environ, masks=(redact,))


def _web_address(text: str | None) -> str | None:
    """Check an address that links begin with. Raises: ValueError for one that no browser opens."""
    if text and not text.startswith(("http://", "https://")):
        raise ValueError(f"TOQUE_CONSOLE_URL={text}: an address begins with http:// or https://")
    return text or None


def _share_of(text: str | None) -> float:
    """Parse a share of memory. Raises: ValueError unless it is above 0, and 1 at most."""
    share = float(text) if text else DEFAULT_MEMORY_SHARE
    if not 0 < share <= 1:
        raise ValueError(f"TOQUE_MEMORY_SHARE={text}: a share of a node's memory is above 0, and 1 at most")
    return share


def _cache_bytes_of(text: str | None) -> int:
    """Parse a size in GB. Raises: ValueError unless it is above 0."""
    if not text:
        return DEFAULT_SHARD_CACHE_BYTES
    if not float(text) > 0:
        raise ValueError(f"TOQUE_SHARD_CACHE_GB={text}: the size of a cache is above 0")
    return int(float(text) * 10**9)


def _hosts_of(text: str | None) -> tuple[str, ...] | None:
    """Parse hosts by commas; None if the variable is not set."""
    if text is None:
        return None
    return tuple(host for each in text.split(",") if (host := each.strip().lower()))


def projects_of(text: str) -> dict[str, str]:
    """Parse `TOQUE_PROJECT`: a module for the default workspace, or `workspace=module`, or several by commas.

    Raises: ValueError if a workspace has two modules, or a name is malformed.
    """
    found: dict[str, str] = {}
    for item in filter(None, (each.strip() for each in text.split(","))):
        workspace, equals, module = item.rpartition("=")
        name = check_workspace(workspace.strip()) if equals else DEFAULT_WORKSPACE
        if name in found or not module.strip():
            raise ValueError(
                f"TOQUE_PROJECT={text!r}: give each workspace one module, as in 'teams.base,payments=teams.payments'"
            )
        found[name] = module.strip()
    return found


def _audit_keys(environment: Mapping[str, str]) -> AuditKeys:
    """Find the keys of the environment, else those of the platform that has its store here."""
    keys, file = AuditKeys.of_environment(environment), Path(DEFAULT_KEY_FILE)
    if not keys and not environment.get("TOQUE_STORE") and file.exists():
        return AuditKeys.of_file(file)
    return keys


@cache
def _of_process() -> Context:
    return context_of(os.environ)
