import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "statistics.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_guide_runs(block: str):
    exec(compile(block, str(GUIDE), "exec"), {})  # noqa: S102 - our own documentation
