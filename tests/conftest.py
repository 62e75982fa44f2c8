"""What every test finds as it was."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def denormals():
    """Commands flush denormals for their process; a test that runs one in this process must not keep that."""
    yield
    torch.set_flush_denormal(False)
