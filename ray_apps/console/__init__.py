"""The console: pages under `/ui` on which a team sees and steers the platform.

Pages are rendered by the gateway's process, which is a Serve deployment of its own, so they never share an event loop with a
predictor. A page knows the platform only by its HTTP API, which it asks in the viewer's name; it reads no store. `pages` says how
to add one.
"""

from toque.ray_apps.console.app import install
from toque.ray_apps.console.page import Console

__all__ = ["Console", "install"]
