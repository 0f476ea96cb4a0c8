"""Runs one of our commands on a cluster from elsewhere, as a Ray job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from toque.ray_apps.deployment.errors import DeploymentError

Report = Callable[[str], None]


def run_on_cluster(address: str, command: str, *, report: Report) -> int:
    """Run `command` on the head of the cluster whose job endpoint is `address`; returns 0 if it went well, else 1.

    report: called with each line that it prints. The cluster's own code and profile are used. Raises: DeploymentError if
    the endpoint does not answer or refuses Ray's token.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient  # late: it brings Ray in

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=command)
    except (ConnectionError, RuntimeError) as error:
        raise DeploymentError(f"{address}: {error}") from error

    async def follow() -> None:
        rest = ""
        async for text in client.tail_job_logs(job):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                report(line)
        if rest:
            report(rest)

    asyncio.run(follow())
    return 0 if client.get_job_status(job) is JobStatus.SUCCEEDED else 1
