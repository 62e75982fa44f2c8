"""Tiny data sets written by the tests, and a cache of their own for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CONVLENS_CACHE", str(folder))
    return folder


class PictureFolder:
    """Class folders of random pictures; every picture differs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.draw = np.random.default_rng(7)

    def add(self, name: str, size: tuple[int, int] = (12, 10), *, grey: bool = False, **save: object) -> Path:
        """One picture of ``(width, height)`` at ``root/name``."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
        Image.fromarray(self.draw.integers(0, 256, shape, np.uint8)).save(path, **save)  # type: ignore[arg-type]
        return path

    def fill(self, prefix: str = "", classes: tuple[str, ...] = ("cat", "dog"), each: int = 10) -> PictureFolder:
        """`each` PNG pictures per class."""
        for label in classes:
            for number in range(each):
                self.add(f"{prefix}{label}/{number:03d}.png")
        return self


@pytest.fixture
def pictures(tmp_path: Path) -> PictureFolder:
    return PictureFolder(tmp_path / "pictures")
