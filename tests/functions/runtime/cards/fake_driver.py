"""A driver of cards that are not there: the library NVML, compiled from C, which Ray and the platform load as NVIDIA's own."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
WATTS = 100.0


def fake_driver(folder: Path, *, cards: int, slices: str = "", silent: str = "") -> dict[str, str]:
    """Compile the library into a folder; returns the variables of a process that finds it there.

    slices: profiles that each card is cut into, as in "1g.10gb,1g.10gb"; silent: anything, if no card tells its energy.
    """
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(SOURCE)], check=True)
    told = {"FAKE_SLICES": slices, "FAKE_SILENT": silent}
    said = {name: value for name, value in told.items() if value}
    return {"LD_LIBRARY_PATH": str(folder), "FAKE_CARDS": str(cards), **said}
