"""A browser for the tests of the example's console."""

from tests.ray_apps.console.browser import chromium  # noqa: F401  # a fixture
