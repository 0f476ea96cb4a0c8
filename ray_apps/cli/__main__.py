"""Entry point of `python -m toque.ray_apps.cli`."""

import sys

from toque.ray_apps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
