"""What a reader of one format offers, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convlens.data.dataset import Report, SkippedFile
from convlens.data.options import DataOptions
from convlens.data.preprocessing import Array, Preprocessing

if TYPE_CHECKING:
    from convlens.data.cache import RowWriter
    from convlens.data.progress import Track
    from convlens.data.survey import FileFacts

__all__ = ["Found", "Reader", "Report", "SkippedFile", "Work"]


@dataclass(frozen=True, eq=False)
class Found:
    """All samples of a source before they are split and normalised.

    Attributes:
        preprocessing: without mean and std, which need the split.
        inputs: storage form ``[N, channels, *size]``.
        labels: int64 ``[N]`` or uint8 ``[N, classes]``.
        class_names: name of each label.
        names: identifier of each sample.
        given: int8 ``[N]`` of 0 train, 1 dev, 2 test, -1 free; None when the source says nothing.
        groups: name of the group of each sample, or None.
        digests: uint8 ``[N, 16]`` content hashes; None: hash the inputs.
        report: what was left out.
    """

    preprocessing: Preprocessing
    inputs: Array
    labels: Array
    class_names: tuple[str, ...]
    names: Sequence[str]
    given: Array | None = None
    groups: Sequence[str] | None = None
    digests: Array | None = None
    report: Report = field(default_factory=lambda: Report(found=0, used=0))

    def with_digests(self, digests: Array) -> Found:
        """The same with content hashes."""
        return replace(self, digests=digests)


@dataclass(frozen=True, eq=False)
class Work:
    """What a reader works with.

    Attributes:
        facts: content hash and picture header of every file that `Reader.files` named.
        writer: takes samples that are too many to hold; using it is optional.
        track: progress.
    """

    facts: Mapping[Path, FileFacts]
    writer: RowWriter
    track: Track


class Reader(Protocol):
    """Reads one format. Readers are asked in the order of the register; the first that matches reads.

    Attributes:
        name: what it reads, in words.
        pictures: whether `Work.facts` must hold picture headers.
    """

    name: str
    pictures: bool

    def matches(self, source: str) -> bool:
        """True where `source` (a known name or an existing path) is in this format."""
        ...

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """Every file whose content the samples depend on, in a fixed order; empty for embedded data."""
        ...

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """All samples; raises `DataError` where they are not a data set."""
        ...
