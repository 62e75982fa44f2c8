"""One file per format; this register names them in the order in which they are asked."""

from __future__ import annotations

from convlens.data.formats.contract import Found, Reader, Work

__all__ = ["Found", "Reader", "Work", "readers"]


def readers() -> tuple[Reader, ...]:
    """Every reader, the most particular first."""
    from convlens.data.formats.arrays import ArrayReader
    from convlens.data.formats.digits import DigitsReader
    from convlens.data.formats.folders import FolderReader
    from convlens.data.formats.idx import IdxReader
    from convlens.data.formats.known import KnownReader
    from convlens.data.formats.manifest import ManifestReader
    from convlens.data.formats.scenes import SceneReader
    from convlens.data.formats.sequences import FastaReader, SequenceTableReader
    from convlens.data.formats.shards import ShardReader
    from convlens.data.formats.signals import SignalTableReader
    from convlens.data.formats.volumes import VolumeFolderReader

    return (
        DigitsReader(),
        KnownReader(),
        IdxReader(),
        ManifestReader(),
        SequenceTableReader(),
        FastaReader(),
        SignalTableReader(),
        SceneReader(),
        ArrayReader(),
        ShardReader(),
        FolderReader(),
        VolumeFolderReader(),
    )
