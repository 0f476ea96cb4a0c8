"""Sentinels that name the master of a service, with an error that a reader understands."""

from __future__ import annotations

from typing import Any

import redis.asyncio.sentinel
import redis.sentinel


class Sentinels(redis.sentinel.Sentinel):
    """Sentinels at some hosts, asked in turn."""

    def discover_master(self, service_name: str) -> Any:
        """Ask for the address of the master. Raises: redis.ConnectionError if no Sentinel names one."""
        try:
            return super().discover_master(service_name)
        except redis.sentinel.MasterNotFoundError as error:
            raise redis.sentinel.MasterNotFoundError(_said(self.sentinels, service_name)) from error


class AsyncSentinels(redis.asyncio.sentinel.Sentinel):
    """Sentinels at some hosts, asked in turn on an event loop."""

    async def discover_master(self, service_name: str) -> Any:
        """Ask for the address of the master. Raises: redis.ConnectionError if no Sentinel names one."""
        try:
            return await super().discover_master(service_name)
        except redis.asyncio.sentinel.MasterNotFoundError as error:
            raise redis.asyncio.sentinel.MasterNotFoundError(_said(self.sentinels, service_name)) from error


def _said(sentinels: Any, service: str) -> str:
    places = [each.connection_pool.connection_kwargs for each in sentinels]
    hosts = ", ".join(f"{place['host']}:{place['port']}" for place in places)
    return (
        f"no Sentinel at {hosts} names a healthy master {service!r}; check service= in the url, that they run, and "
        "whether they take the password (sentinel_auth=none if they have none)"
    )
