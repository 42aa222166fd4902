"""Each call of docs/questions.md gives what the page says beside it, on an input that shows the problem."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "questions.md").read_text()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("part", "fewest"), [(PAGE.split("## Sign")[0], 20), (PAGE.split("## Log-prob")[1], 12)])
def test_every_call_gives_what_the_page_says(part: str, fewest: int) -> None:
    said, got = [], []
    names: dict[str, Any] = {"print": got.append}
    for block in re.findall(r"^```python\n(.*?)^```$", part, re.S | re.M):
        exec(block, names)
        said += re.findall(r"^print.*  # (\S+)$", block, re.M)
    assert len(said) == len(got) >= fewest
    for text, value in zip(said, got, strict=True):
        if isinstance(value, str):
            assert value == text
        else:
            digits = len(text.split("e")[0].replace(".", "").lstrip("-0"))
            near = pytest.approx(float(text), rel=0.6 * 10.0 ** (1 - max(digits, 2)), nan_ok=True)
            assert float(value) == near, (text, value)
