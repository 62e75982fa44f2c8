"""What every test finds as it was."""

from __future__ import annotations

import pytest
import torch

_THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def own_process_settings():
    """Commands flush denormals and choose threads for their process; a test that runs one must not keep that."""
    yield
    torch.set_flush_denormal(False)
    if torch.get_num_threads() != _THREADS:
        torch.set_num_threads(_THREADS)
