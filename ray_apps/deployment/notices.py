"""Learns from a cloud that it is about to take this machine: AWS's and Google's notices for spot machines.

AWS: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html (two minutes).
Google: https://cloud.google.com/compute/docs/instances/spot (thirty seconds).
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["CLOUDS", "Notice", "aws_notice", "gcp_notice", "wait_for_notice"]

POLL_S = 2.0
TIMEOUT_S = 2.0
GCP_S = 30.0
AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a cloud said, and how many seconds remain until it takes the machine."""

    text: str
    within_s: float


def aws_notice(
    address: str = AWS, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Notice | None:
    """Read the notice of an AWS spot machine; None if there is none, or the service does not answer this time."""
    lasting = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(f"{address}/latest/api/token", lasting, method="PUT")
    if token is None:
        return None
    said = _ask(f"{address}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    if said is None:
        return None
    action = json.loads(said)
    at = datetime.fromisoformat(action["time"])
    return Notice(
        f"AWS will {action['action']} this machine at {action['time']}",
        max(1.0, (at - now()).total_seconds()),
    )


def gcp_notice(address: str = GCP) -> Notice | None:
    """Read the notice of a Google spot machine; None if there is none, or the service does not answer this time."""
    said = _ask(f"{address}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return Notice("Google preempts this machine", GCP_S) if said == "TRUE" else None


CLOUDS: dict[str, Callable[[], Notice | None]] = {"aws": aws_notice, "gcp": gcp_notice}


def wait_for_notice(cloud: str, *, poll_s: float = POLL_S) -> Notice:
    """Wait until a cloud says that it takes this machine. cloud: one of `CLOUDS`."""
    while (found := CLOUDS[cloud]()) is None:
        time.sleep(poll_s)
    return found


def _ask(url: str, headers: dict[str, str], *, method: str = "GET") -> str | None:
    """Content of a page of the metadata service; None if there is no such page, or no answer."""
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310  # http, on the machine itself
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by way of a proxy
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content.decode()
    except OSError:  # URLError and its HTTPError are OSErrors; the next question is two seconds away
        return None
