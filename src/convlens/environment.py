"""The one file that reads environment variables.

==========================  ==============================================================
``CONVLENS_CACHE``          folder of compiled kernels, plans, decoded data and downloads
``CONVLENS_PLAN``           ``measure`` (default) or ``estimate``: how kernels are chosen
``CONVLENS_TOKEN``          bearer token that `convlens serve` asks for
``LOCAL_RANK``              set by ``torchrun``: number of this process on its machine
``RANK``, ``WORLD_SIZE``    set by ``torchrun``: number of this process, and of all
``TORCHELASTIC_RESTART_…``  set by ``torchrun``: how often it has started the group again
``TORCHELASTIC_RUN_ID``     set by ``torchrun``: name of the launch
==========================  ==============================================================
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_dir", "launch_id", "local_rank", "plan_mode", "rank_and_world", "restarts", "serve_token"]


def cache_dir() -> Path:
    """Folder for everything that can be made again; not created here.

    ``CONVLENS_CACHE`` if set, else the platform's cache folder (XDG on Linux, ``~/Library/Caches`` on
    macOS, ``%LOCALAPPDATA%`` on Windows) followed by ``convlens``.
    """
    if chosen := os.environ.get("CONVLENS_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "convlens"


def rank_and_world() -> tuple[int, int]:
    """``(number of this process, number of processes)`` as ``torchrun`` set them; ``(0, 1)`` without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def restarts() -> int:
    """How often ``torchrun`` has started this group of processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_id() -> str:
    """What tells this launch of ``torchrun`` from others, the same after a restart: its name and its process."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"


def local_rank() -> int:
    """Number of this process on its machine, from 0; ``torchrun`` sets ``LOCAL_RANK``."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def plan_mode() -> str:
    """How the planner chooses: ``"measure"`` candidates on this machine, or ``"estimate"`` only."""
    return os.environ.get("CONVLENS_PLAN", "measure")


def serve_token() -> str | None:
    """The bearer token that the server asks for; None if not set."""
    return os.environ.get("CONVLENS_TOKEN") or None
