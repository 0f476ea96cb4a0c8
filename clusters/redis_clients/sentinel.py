"""Sentinels that name the master of a service, and connections that follow it.

A connection of the library that is lost amid a command goes back to the address it had, so a retry would wait for a dead
master; ours ask the Sentinels again.
"""

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


class MasterConnection(redis.sentinel.SentinelManagedConnection):
    """Connection to the master, wherever it is by now."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # the library's
        """Send a command, to the present master where the connection was lost."""
        if not self._sock:
            self.connect()
        super().send_packed_command(command, check_health)


class TlsMasterConnection(MasterConnection, redis.sentinel.SentinelManagedSSLConnection):
    """Connection by TLS to the master, wherever it is by now."""


class AsyncMasterConnection(redis.asyncio.sentinel.SentinelManagedConnection):
    """Connection to the master on an event loop."""

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # as above
        """Send a command, to the present master where the connection was lost."""
        if not self.is_connected:
            await self.connect()
        await super().send_packed_command(command, check_health)


class AsyncTlsMasterConnection(AsyncMasterConnection, redis.asyncio.sentinel.SentinelManagedSSLConnection):
    """Connection by TLS to the master on an event loop."""


def _said(sentinels: Any, service: str) -> str:
    places = [each.connection_pool.connection_kwargs for each in sentinels]
    hosts = ", ".join(f"{place['host']}:{place['port']}" for place in places)
    return (
        f"no Sentinel at {hosts} names a healthy master {service!r}; check service= in the url, that they run, and "
        "whether they take the password (sentinel_auth=none if they have none)"
    )
