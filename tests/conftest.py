"""Shared by all tests: the scripts on the path, the embedded pair in 4-bit, the mark for GPU tests."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU (run them alone with: pytest -m gpu)")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session")
def student():
    """(model with LoRA, tokenizer), 4-bit, on the CPU. Its adapters are left as found."""
    from sample import TINY, load_student, quiet

    quiet()
    return load_student(TINY / "student", 4, "cpu")[:2]


@pytest.fixture(scope="session")
def teacher():
    """(model, tokenizer), 4-bit, on the CPU."""
    from sample import TINY, load_model, quiet

    quiet()
    return load_model(TINY / "teacher", 4, "cpu", "--teacher")


@pytest.fixture
def fresh_student():
    """A student of the test's own, to train or break."""
    from sample import TINY, load_student, quiet

    quiet()
    torch.manual_seed(0)
    return load_student(TINY / "student", 4, "cpu")[:2]
