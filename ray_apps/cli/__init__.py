"""The commands: `toque`, or `python -m toque.ray_apps.cli`.

What changes a running platform goes through its HTTP door with the caller's token, like anybody's request; only
`up`, `down`, `status` and `demo` touch this machine.
"""

from toque.ray_apps.cli.main import main

__all__ = ["main"]
