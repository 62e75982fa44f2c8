"""One file per format; this register names them in the order in which they are asked."""

from __future__ import annotations

from convlens.data.formats.contract import Found, Reader, Work

__all__ = ["Found", "Reader", "Work", "readers"]


def readers() -> tuple[Reader, ...]:
    """Every reader, the most particular first."""
    from convlens.data.formats.digits import DigitsReader
    from convlens.data.formats.folders import FolderReader
    from convlens.data.formats.idx import IdxReader

    return (DigitsReader(), IdxReader(), FolderReader())
