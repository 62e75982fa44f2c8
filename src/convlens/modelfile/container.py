"""Safetensors with a JSON record and a checksum over every byte; hostile files end in one clear error.

The record sits in safetensors' own metadata, so any safetensors reader opens the file::

    __metadata__ = {"format": KIND, "format_version": "1", "checksum": 64 hex digits, "record": JSON text}

The checksum is SHA-256 over the whole file with its own 64 digits set to ``0``. Nothing is executed, no
number in the header is believed before it has been compared with the size of the file, and the largest
buffer is bounded by `MAX_HEADER_BYTES` plus the tensors themselves.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from convlens.errors import ModelFileError, PathError
from convlens.modelfile.atomic import replace_atomically

__all__ = ["MAX_HEADER_BYTES", "read_container", "read_record", "write_container"]

MAX_HEADER_BYTES = 16 * 2**20
"""The longest header that is read; a net of 10,000 tensors needs about 1 MiB."""
_PLACEHOLDER = b"0" * 64
_MARK = b'"checksum":"'
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def write_container(
    path: Path, kind: str, version: int, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> None:
    """Write tensors and record as one file, atomically.

    Args:
        path: the file to make or replace.
        kind: what the file is, such as ``"convlens-model"``.
        version: version of that kind's record.
        tensors: names to tensors of any device; copied to contiguous CPU memory.
        record: JSON values.

    Raises:
        StorageError: no space, or no permission. An older file of that name is untouched.
    """
    metadata = {
        "format": kind,
        "format_version": str(version),
        "checksum": _PLACEHOLDER.decode(),
        "record": json.dumps(record, ensure_ascii=False, allow_nan=True),
    }
    with replace_atomically(path) as temporary:
        try:
            save_file(_owned(tensors), temporary, metadata)
        except SafetensorError as error:
            # safetensors hides what the system said in its own error's text
            if said := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(said[1]), os.strerror(int(said[1])), str(temporary)) from error
            raise
        with temporary.open("r+b") as file:
            place = _checksum_place(_header_bytes(file, path), path)
            digest = _digest(file, place)
            file.seek(place)
            file.write(digest)


def read_container(path: Path, kind: str, newest: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and record of a file that `write_container` wrote, after checking every byte.

    Args:
        path: the file.
        kind: what the file must be.
        newest: newest version of that kind that this convlens reads.

    Raises:
        PathError: no such file.
        ModelFileError: not ours, another kind, newer, truncated or damaged; the text says which.
    """
    record = read_record(path, kind, newest)
    try:
        return load_file(path), record
    except Exception as error:
        # safetensors raises its own exception type; whatever it refuses is a damaged file to us.
        raise ModelFileError(f"{path}: damaged, its tensors cannot be read ({error}).") from None


def read_record(path: Path, kind: str, newest: int) -> dict[str, Any]:
    """The record of a file, after the same checks as `read_container`, without loading tensors."""
    try:
        with path.open("rb") as file:
            header = _header_bytes(file, path)
            metadata = _checked_metadata(header, path, kind, newest)
            _check_tensors(_parse(header, path), _data_bytes(file, header), path)
            place = _checksum_place(header, path)
            if _digest(file, place).decode() != metadata["checksum"]:
                raise ModelFileError(
                    f"{path}: damaged: its content does not match its checksum (a flipped bit, or it was edited)."
                )
    except FileNotFoundError:
        raise PathError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise PathError(f"{path}: is a folder, not a file.") from None
    except PermissionError:
        raise PathError(f"{path}: no permission to read it.") from None
    return _record(metadata["record"], path)


def _owned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors of which no two share memory (tied weights are written twice)."""
    owned: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage().data_ptr()
        owned[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return owned


def _header_bytes(file: BinaryIO, path: Path) -> bytes:
    """The JSON header, whose length is checked against the file and the limit before anything is read."""
    size = file.seek(0, 2)
    file.seek(0)
    if size < 10:
        raise ModelFileError(f"{path}: not a convlens file: {size} bytes are too few.")
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{":
        raise ModelFileError(f"{path}: not a convlens file (it does not begin as safetensors does).")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path}: its header claims {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted."
        )
    if length > size - 8:
        raise ModelFileError(f"{path}: truncated: a header of {length:,} bytes in a file of {size:,}.")
    return b"{" + file.read(length - 1)


def _data_bytes(file: BinaryIO, header: bytes) -> int:
    return file.seek(0, 2) - 8 - len(header)


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ModelFileError(f"{path}: damaged: a name appears twice in its header.")
        return table

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise ModelFileError(f"{path}: not a convlens file, or damaged: its header is not JSON.") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{path}: not a convlens file: its header is not a table.")
    return parsed


def _checked_metadata(header: bytes, path: Path, kind: str, newest: int) -> dict[str, str]:
    metadata = _parse(header, path).get("__metadata__")
    wanted = ("format", "format_version", "checksum", "record")
    if not isinstance(metadata, dict) or any(not isinstance(metadata.get(key), str) for key in wanted):
        raise ModelFileError(f"{path}: a safetensors file, but not one that convlens wrote.")
    if metadata["format"] != kind:
        raise ModelFileError(f"{path}: expected a {kind} file, received a {metadata['format'][:40]!r} file.")
    version = metadata["format_version"]
    if not (version.isascii() and version.isdigit()) or len(version) > 9:
        raise ModelFileError(f"{path}: damaged: format version {version[:40]!r}.")
    if int(version) > newest:
        raise ModelFileError(
            f"{path}: written by a newer convlens (format version {version}, this one reads up to {newest}). "
            f"Update with: pip install -U convlens"
        )
    return metadata


def _check_tensors(header: dict[str, Any], data_bytes: int, path: Path) -> None:
    """Every tensor's type, shape and place agree with each other, and together they fill the file."""
    places = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not _is_tensor(entry):
            raise ModelFileError(f"{path}: damaged: tensor {name[:80]!r} has no valid type, shape and place.")
        begin, end = entry["data_offsets"]
        if end - begin != prod(entry["shape"]) * _DTYPE_BYTES[entry["dtype"]]:
            raise ModelFileError(f"{path}: damaged: tensor {name[:80]!r} does not fill its place.")
        places.append((begin, end))
    expected = 0
    for begin, end in sorted(places):
        if begin != expected:
            raise ModelFileError(f"{path}: damaged: tensors overlap or leave gaps.")
        expected = end
    if expected > data_bytes:
        raise ModelFileError(
            f"{path}: truncated: {expected:,} bytes of tensors expected, {data_bytes:,} are there."
        )
    if expected < data_bytes:
        raise ModelFileError(f"{path}: damaged: {data_bytes - expected:,} bytes follow the last tensor.")


def _is_tensor(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    return (
        isinstance(entry["dtype"], str)
        and entry["dtype"] in _DTYPE_BYTES
        and _are_sizes(shape)
        and len(shape) <= 16
        and _are_sizes(offsets)
        and len(offsets) == 2
    )


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)


def _checksum_place(header: bytes, path: Path) -> int:
    """Position in the file of the 64 digits. Inside JSON text the mark's quotes are escaped, so it is unique."""
    first = header.find(_MARK)
    end = first + len(_MARK) + 64
    if first < 0 or header.find(_MARK, first + 1) >= 0 or header[end : end + 1] != b'"':
        raise ModelFileError(f"{path}: damaged: no checksum in its header.")
    return 8 + first + len(_MARK)


def _digest(file: BinaryIO, place: int) -> bytes:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _sha256((content[:place], _PLACEHOLDER), memoryview(content)[place + 64 :])


def _sha256(start: Iterable[bytes], rest: memoryview) -> bytes:
    found = hashlib.sha256()
    for part in start:
        found.update(part)
    found.update(rest)
    rest.release()
    return found.hexdigest().encode()


def _record(text: str, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelFileError(f"{path}: damaged: its record is not JSON.") from None
    if not isinstance(record, dict):
        raise ModelFileError(f"{path}: damaged: its record is not a table.")
    return record
