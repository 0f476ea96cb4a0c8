"""The wheel: installed without a checkout it gives the command and the library, and mixes with nobody's files."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import toque

ROOT = Path(__file__).parents[2]

ROOMS = ("clusters", "featurestore", "functions", "kernels", "load", "ray_apps", "registry")
LEFT_OUT = {"", ".md", ".proto", ".pyc"}  # what no process opens


def build_wheel(folder: Path) -> Path:
    """Build it from a copy, as no build may leave its files in the checkout."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in (*ROOMS, "toque", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", str(folder), str(copy)], check=True)
    return next(folder.glob("*.whl"))


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


def test_its_files_lie_in_one_package_with_all_that_a_platform_opens(installed: Path) -> None:
    with zipfile.ZipFile(next(installed.parents[1].glob("*.whl"))) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"toque", "toque-0.1.0.dist-info"}
    assert not any(name.startswith("toque/load/attacks/") for name in names)
    code = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*")
            if path.is_file() and path.suffix not in LEFT_OUT and "__pycache__" not in path.parts}  # fmt: skip
    code = {path for path in code if not path.startswith(("load/attacks/", "clusters/kubernetes/"))}
    assert {path for path in code if f"toque/{path}" not in names} == set()
    assert {"toque/py.typed", "toque/__init__.pyi", "toque-0.1.0.dist-info/licenses/LICENSE"} <= names


def test_it_makes_a_project_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    rows(tmp_path / "data.csv")
    made = run(
        str(installed / "toque"), "init", "shop", "--from", "data.csv", "--keep", "b", "--yes", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    imported = (
        "from toque import FeatureView, ModelDefinition; import toque.functions, shop.load; from shop.features import source; "
        "pieces = source.reads.pieces({}, sorted(set(source.read_columns.values())), str); "
        "print(toque.functions.__file__, sum(rows.num_rows for piece in pieces for rows in piece.batches()))"
    )
    found = run(str(installed / "python"), "-c", imported, cwd=tmp_path / "shop")
    assert found.returncode == 0, found.stderr
    place, height = found.stdout.split()
    assert place.startswith(str(installed.parent))
    assert height == "200"


def test_other_packages_of_general_names_can_lie_beside_it(installed: Path, tmp_path: Path) -> None:
    for name in ("kernels", "functions", "load", "registry"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("THEIRS = True")
    asked = "import functions, kernels, load, registry, toque.kernels, toque.registry; print(kernels.THEIRS, toque.kernels.hash_strings)"
    found = run(str(installed / "python"), "-c", asked, cwd=tmp_path)
    assert found.stdout.startswith("True <function hash_strings"), found.stderr


def test_the_face_has_the_rooms_public_names_and_no_others() -> None:
    from toque.functions.project import ModelDefinition

    assert toque.ModelDefinition is ModelDefinition
    with pytest.raises(AttributeError, match="toque has no 'Nothing'"):
        _ = toque.Nothing
