"""`ray start` in this process, with the password of the head's Redis from its environment: every user of a machine can read a command line.

python -m toque.ray_apps.deployment.start_ray start --head …
"""

from __future__ import annotations

import os
import sys
from typing import Final

PASSWORD: Final = "TOQUE_HEAD_REDIS_PASSWORD"  # noqa: S105  # the name of a variable


def main() -> None:
    """Run Ray's command line; the variable is taken out, so that Ray's processes do not inherit it."""
    from ray.scripts.scripts import cli  # late: who wants the variable's name needs no Ray

    password = os.environ.pop(PASSWORD, "")
    cli([*sys.argv[1:], *([f"--redis-password={password}"] if password else [])], prog_name="ray")


if __name__ == "__main__":
    main()
