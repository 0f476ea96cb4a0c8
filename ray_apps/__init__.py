"""What runs on a cluster: the serving counter, the door to functions, the ticker, and the commands that start them.

It may use every room below. It must stay light to import: the processes that start Ray import it before Ray.
"""

from ray_apps import renamed as _renamed  # noqa: F401  # old module paths stay importable for one release
