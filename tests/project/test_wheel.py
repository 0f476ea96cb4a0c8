"""The wheel: installed without a checkout it gives the command and the library, and mixes with nobody's files."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import toque
from clusters.wheel import ROOMS, ROOT, build_wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which borrows what the wheel depends on from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = Path(
        sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    )
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
         "--disable-pip-version-check", str(wheel)],
        check=True,
    )  # fmt: skip
    return folder / "venv" / "bin"


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )


def rows(path: Path) -> Path:
    lines = [f"{number},{number % 7},{'yes' if number % 7 > 3 else 'no'}" for number in range(200)]
    path.write_text("\n".join(["a,b,sold", *lines, ""]).replace("199,3,no", "199,3,yes"))
    return path


def test_its_files_lie_in_no_package_but_its_own(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "one")
    assert wheel.read_bytes() == build_wheel(tmp_path / "two").read_bytes()
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"toque", "toque.pth", "toque-0.1.0.dist-info"}
    assert {name.split("/")[2] for name in names if name.startswith("toque/rooms/")} == set(ROOMS)
    assert {"toque/rooms/clusters/local.yaml", "toque/rooms/clusters/haproxy.sh"} <= set(names)


def test_it_has_every_file_that_pages_of_the_console_are_made_of(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        packed = set(archive.namelist())
    folder = ROOT / "ray_apps" / "console"
    files = [path for part in ("templates", "static") for path in (folder / part).iterdir()]
    assert len(files) > 10
    assert {f"toque/rooms/{path.relative_to(ROOT).as_posix()}" for path in files} <= packed


def test_it_makes_a_project_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    rows(tmp_path / "data.csv")
    made = run(
        str(installed / "toque"), "init", "shop", "--from", "data.csv", "--keep", "b", "--yes", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    imported = (
        "from toque import FeatureView, ModelDefinition; import functions, shop.load; from shop.features import source; "
        "pieces = source.reads.pieces({}, sorted(set(source.read_columns.values())), str); "
        "print(functions.__file__, sum(rows.num_rows for piece in pieces for rows in piece.batches()))"
    )
    found = run(str(installed / "python"), "-c", imported, cwd=tmp_path / "shop")
    assert found.returncode == 0, found.stderr
    place, height = found.stdout.split()
    assert place.startswith(str(installed.parent))
    assert height == "200"


def test_a_package_of_one_of_its_names_is_told_and_refused(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    site = next((installed.parent / "lib").glob("python*/site-packages"))
    (site / "foreign.pth").write_text(f"{tmp_path}\n")
    try:
        refused = run(str(installed / "toque"), "init", "shop", cwd=tmp_path)
    finally:
        (site / "foreign.pth").unlink()
    assert refused.returncode == 1
    assert (
        f"{tmp_path}/kernels/__init__.py is a package called 'kernels', as one of Toque's" in refused.stderr
    )


def test_the_face_has_the_rooms_public_names_and_no_others() -> None:
    from functions.project import ModelDefinition

    assert toque.ModelDefinition is ModelDefinition
    with pytest.raises(AttributeError, match="toque has no 'Nothing'"):
        _ = toque.Nothing
