"""Hyperspectral scenes (``.mat``, or ``.npy`` with ``--kind spectral``): every labelled pixel is a sample.

A sample is the spectrum of a pixel, or with ``--patch`` the square around it. Patches of neighbours overlap, so
their test accuracy is optimistic; the report says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from convlens.data.arrays import load_npy
from convlens.data.formats.contract import Found, Report, Work
from convlens.data.options import DataOptions
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.series import as_float32
from convlens.errors import BadFileError, DataError

__all__ = ["SceneReader", "cube_of", "patches"]

_LABEL_ENDINGS = ("_gt.mat", "_labels.mat", "_labels.npy", "_gt.npy")


class SceneReader:
    """One cube with one label per pixel."""

    name = "hyperspectral scene (.mat)"
    pictures = False

    def matches(self, source: str) -> bool:
        """A MATLAB file."""
        path = Path(source)
        return path.is_file() and path.suffix.lower() == ".mat"

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """The scene, and its labels where they lie in a second file."""
        path = Path(source)
        beside = _labels_file(path, options)
        return [path] if beside is None else [path, beside]

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every pixel that has a label, float32 ``[N, bands, patch, patch]``."""
        path = Path(source)
        arrays = _arrays_in(path)
        cube, labels, class_names = _unmixed(arrays) or _labelled(path, arrays, options)
        half = options.patch // 2
        rows, columns = np.nonzero(labels >= 0)
        bands = cube.shape[2]
        form = Preprocessing(
            kind="spectral", channels=bands, size=(options.patch, options.patch), dtype="float32", fit="crop"
        )
        work.writer.expect(len(rows), 4 * bands * options.patch**2)
        for patch in patches(cube, options.patch, zip(rows.tolist(), columns.tolist(), strict=True)):
            work.writer.append(patch)
        notes = [f"scene of {cube.shape[0]}×{cube.shape[1]} pixels, {bands} bands, {len(rows)} pixels labelled"]
        if half:
            notes.append("patches of neighbouring pixels overlap, so dev and test share pixels with train")
        return Found(
            preprocessing=form,
            inputs=work.writer.finish(),
            labels=labels[rows, columns].astype(np.int64),
            class_names=class_names,
            names=[f"{path.name}[{row},{column}]" for row, column in zip(rows, columns, strict=True)],
            report=Report(found=len(rows), used=len(rows), notes=tuple(notes)),
        )


def cube_of(path: Path) -> Array:
    """The cube ``[rows, columns, bands]`` of a scene, which needs no labels.

    Raises:
        BadFileError: it cannot be read, or holds no cube.
    """
    arrays = _arrays_in(path)
    if (unmixed := _unmixed(arrays)) is not None:
        return unmixed[0]
    cubes = [values for values in arrays.values() if values.ndim == 3]
    if not cubes:
        raise BadFileError(f"{path}: holds no cube [rows, columns, bands].")
    return max(cubes, key=lambda values: values.size)


def patches(cube: Array, side: int, places: Iterable[tuple[int, int]]) -> Iterator[Array]:
    """Squares ``[bands, side, side]``, float32, around pixels; mirrored at the edge, no number counts as 0."""
    half = side // 2
    whole = np.nan_to_num(as_float32(cube), posinf=0.0, neginf=0.0)
    around = np.pad(whole, ((half, half), (half, half), (0, 0)), mode="reflect").transpose(2, 0, 1)
    for row, column in places:
        yield around[:, row : row + side, column : column + side]


def _labels_file(path: Path, options: DataOptions) -> Path | None:
    if options.labels:
        named = path.parent / options.labels
        return named if named.is_file() else None
    return next((other for end in _LABEL_ENDINGS if (other := path.with_name(path.stem + end)).is_file()), None)


def _arrays_in(path: Path) -> dict[str, Array]:
    if path.suffix.lower() == ".npy":
        return {path.stem: load_npy(path)}
    from scipy.io import loadmat

    try:
        found = loadmat(path)
    except NotImplementedError:
        raise BadFileError(f"{path}: is a MATLAB 7.3 file (HDF5). Fix: save it again with -v7.") from None
    except Exception as error:  # damaged files raise anything
        raise BadFileError(f"{path}: is not a whole MATLAB file ({error}).") from None
    return {
        name: values
        for name, values in found.items()
        if isinstance(values, np.ndarray) and values.dtype.kind in "iuf" and not name.startswith("__")
    }


def _unmixed(arrays: dict[str, Array]) -> tuple[Array, Array, tuple[str, ...]] | None:
    """Unmixing sets: ``Y`` (bands × pixels) and abundances ``A`` (materials × pixels), column after column."""
    cube, shares = arrays.get("Y", arrays.get("V")), arrays.get("A")
    if cube is None or shares is None or cube.ndim != 2 or shares.ndim != 2 or cube.shape[1] != shares.shape[1]:
        return None
    pixels = cube.shape[1]
    rows = int(np.ravel(arrays.get("nRow", math.isqrt(pixels)))[0])
    if rows < 1 or pixels % rows:
        raise DataError(f"the scene has {pixels} pixels, which do not fill {rows} rows.")
    columns = pixels // rows
    picture = cube.reshape(-1, columns, rows).transpose(2, 1, 0)
    labels = shares.argmax(axis=0).reshape(columns, rows).T
    return picture, labels, tuple(f"material {number + 1}" for number in range(len(shares)))


def _labelled(path: Path, arrays: dict[str, Array], options: DataOptions) -> tuple[Array, Array, tuple[str, ...]]:
    """A cube ``[rows, columns, bands]`` and a map ``[rows, columns]`` of whole numbers, 0 for "no label"."""
    cubes = [values for values in arrays.values() if values.ndim == 3]
    if not cubes:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in arrays.items())
        raise DataError(f"{path}: holds no cube [rows, columns, bands]; it holds {shapes or 'no numbers'}.")
    cube = max(cubes, key=lambda values: values.size)
    beside = _labels_file(path, options)
    candidates = {**arrays, **(_arrays_in(beside) if beside else {})}
    if options.labels in candidates:
        candidates = {options.labels: candidates[options.labels]}
    for values in candidates.values():
        if values.ndim == 2 and values.shape == cube.shape[:2] and (values == np.round(values)).all():
            numbers = values.astype(np.int64)
            present = [number for number in np.unique(numbers).tolist() if number != 0]
            labels = np.full(numbers.shape, -1, np.int64)
            for place, number in enumerate(present):
                labels[numbers == number] = place
            return cube, labels, tuple(str(number) for number in present)
    raise DataError(
        f"{path}: found the cube {cube.shape} but no map of labels {cube.shape[:2]}. Fix: name its file or "
        "its key with --labels."
    )
