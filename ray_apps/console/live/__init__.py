"""What open pages follow: topics whose changes are told as they happen, and contents of pages rendered once for all who look."""

from toque.ray_apps.console.live.changes import MAX_TOPICS, LiveChanges, View, is_topic
from toque.ray_apps.console.live.open_pages import PART, OpenPage, Renderings

__all__ = ["MAX_TOPICS", "PART", "LiveChanges", "OpenPage", "Renderings", "View", "is_topic"]
