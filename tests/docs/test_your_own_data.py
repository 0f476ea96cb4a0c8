"""The page for newcomers is run, block by block, as a newcomer would."""

import re
from pathlib import Path
from typing import Any

from functions import Context, use_context
from registry import open_store

PAGE = Path(__file__).parents[2] / "docs" / "your-own-data.md"


def test_every_block_of_the_page_runs_in_order(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    url = tmp_path.as_uri()
    names: dict[str, Any] = {}
    with use_context(Context(store=open_store(url), store_url=url)):
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)  # noqa: S102 - our own page
    assert names["registry"].get_version("tumour", "champion").version == names["trained"].version
