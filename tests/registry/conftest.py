import multiprocessing
import multiprocessing.context
import uuid
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.conditions.servers import s3_server
from tests.registry import s3_servers
from toque.registry import ObjectStore, Registry, open_store


@pytest.fixture(scope="session", autouse=True)
def aws_environment() -> Iterator[None]:
    """Credentials for the S3 server of the tests, for this process and those it starts."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        patch.setenv(name, value)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def processes(aws_environment: None) -> multiprocessing.context.ForkServerContext:
    """Context that starts processes from a fork server with our packages imported, which is fast and safe."""
    forkserver._forkserver._stop()  # one that another room's tests started knows nothing of these credentials
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toque.registry"])
    return context


@pytest.fixture(scope="session")
def s3_endpoint(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of an S3 server with a bucket `toque`: moto's, or SeaweedFS if TOQUE_TEST_S3 says so."""
    with s3_server(tmp_path_factory.mktemp("weed")) as endpoint:
        s3_servers.create_bucket(endpoint, "toque")
        yield endpoint


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


@pytest.fixture(params=["folder", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store; tests that use it run once for each kind of store."""
    if request.param == "folder":
        return f"file://{tmp_path}/store"
    endpoint = request.getfixturevalue("s3_endpoint")
    return f"s3://toque/{uuid.uuid4().hex}?endpoint={endpoint}"


@pytest.fixture
def store(store_url: str) -> ObjectStore:
    return open_store(store_url)


@pytest.fixture
def folder_store(folder_url: str) -> ObjectStore:
    return open_store(folder_url)


@pytest.fixture
def model_files(tmp_path: Path) -> Path:
    """A folder with the files of a small model."""
    folder = tmp_path / "model"
    (folder / "notes").mkdir(parents=True)
    (folder / "model.pt2").write_bytes(b"weights" * 1000)
    (folder / "model.json").write_text("{}")
    (folder / "notes" / "empty.txt").write_bytes(b"")
    return folder


@pytest.fixture
def reg(folder_store: ObjectStore) -> Registry:
    return Registry(folder_store, actor="ada")
