"""Tells whom a signed token on standard input stands for, or why it is refused: `python -m toque.ray_apps.oidc < token`.

The settings are those of `TOQUE_OIDC`. Exit codes: 0 accepted, 1 refused, 2 wrong or missing settings.
"""

from __future__ import annotations

import argparse
import os
import sys

from toque.ray_apps.oidc.settings import OidcSettings
from toque.ray_apps.oidc.verifier import OidcVerifier
from toque.registry import InvalidInput, Unavailable


def main(arguments: list[str] | None = None) -> int:
    """Check the token on standard input; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m toque.ray_apps.oidc", description=__doc__)
    parser.parse_args(arguments)
    try:
        settings = OidcSettings.from_environment(os.environ)
    except InvalidInput as error:
        print(error, file=sys.stderr)  # noqa: T201  # a program's output
        return 2
    if settings is None:
        print("TOQUE_OIDC is not set; name the issuer in it", file=sys.stderr)  # noqa: T201
        return 2
    try:
        principal = OidcVerifier(settings).check(sys.stdin.read().strip())
    except (InvalidInput, Unavailable) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"{principal.name} has {principal.roles}")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
