from pathlib import Path

import pytest

from tests.language_model import language_model_weights


@pytest.fixture(scope="session")
def weights() -> Path:
    return language_model_weights()
