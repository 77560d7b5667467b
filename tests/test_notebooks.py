"""What leads to the notebooks from outside. notebooks/check.py runs the notebooks themselves."""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))
import colab


def cells(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text("utf-8"))["cells"]]


def test_a_colab_badge_is_put_once_and_changes_nothing_else(tmp_path):
    path = Path(shutil.copy(ROOT / "notebooks" / "4_search.ipynb", tmp_path))
    before = cells(path)
    colab.lead_to("first/place", path)
    colab.lead_to("second/place", path)
    title, code, *rest = cells(path)
    assert title.count("Open in Colab") == 1 and title.endswith(before[0])
    assert "/github/second/place/blob/main/notebooks/4_search.ipynb)" in title
    assert "clone -q https://github.com/second/place ovd" in code and "first/place" not in code
    assert code.endswith(before[1]) and len(code.splitlines()) <= 25 and rest == before[2:]
