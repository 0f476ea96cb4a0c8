"""Every block of the experiments guide runs, one after the other."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "experiments-guide.md"


def test_the_guide_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), str(GUIDE), "exec"), {})  # noqa: S102 - our own documentation
