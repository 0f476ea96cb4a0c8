"""Runs the demo of the language model: `python -m examples.capitals`."""

import os
import sys

from examples.capitals.demo import main

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
