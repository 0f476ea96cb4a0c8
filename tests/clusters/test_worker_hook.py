"""Workers import Ray Serve and Arrow without pandas, and whoever wants pandas later gets it."""

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).parents[2])
_SERVE = "import ray.serve, ray.serve._private.utils as utils"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Serve has no encoder of data frames; pandas is as importable as before
        (
            "lighten(); lighten()",
            "assert utils.pd is None and 'pandas' not in sys.modules; import pandas; pandas.DataFrame()",
        ),
        # it was there before: nothing is taken from anybody
        ("import pandas; lighten()", "assert utils.pd is pandas and sys.modules['pandas'] is pandas"),
    ],
)
def test_serve_is_imported_without_pandas(before: str, after: str) -> None:
    code = f"import sys; sys.path.insert(0, {_ROOT!r}); from toque.clusters.worker_hook import lighten; {before}; {_SERVE}; {after}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "after",
    [
        "frame = table.to_pandas(); assert frame['a'].isna().tolist() == [False, True]",
        "import pandas; assert arrow.array(pandas.Series([1.0, None]), from_pandas=True).null_count == 1",
        "import pandas; assert arrow.Table.from_pandas(pandas.DataFrame({'a': [1]})).num_rows == 1",
        "import pandas; assert arrow.lib._pandas_api.have_pandas",
    ],
)
def test_arrow_is_used_without_pandas_until_somebody_imports_it(after: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {_ROOT!r}); from toque.clusters.worker_hook import lighten; lighten(); "
        "import pyarrow as arrow, pyarrow.dataset, pyarrow.parquet; "
        "table = arrow.table({'a': arrow.array([1, None], arrow.int64())}); "
        "arrow.scalar(1); assert 'pandas' not in sys.modules; "
        f"{after}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
