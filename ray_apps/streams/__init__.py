"""Consumers of streams as a Serve application: they share the partitions by leases, and take over from one that dies."""

from toque.ray_apps.streams.deployment import application

__all__ = ["application"]
