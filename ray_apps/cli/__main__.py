"""Entry point of `python -m ray_apps.cli`."""

import sys

from ray_apps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
