"""NumPy arrays of pictures, signals or volumes: ``.npz`` with labels inside, ``.npy`` with labels beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from convlens.data.arrays import fitted_volume, load_npy
from convlens.data.formats.contract import Found, Report, Work
from convlens.data.formats.scenes import SceneReader
from convlens.data.formats.signals import signals_found
from convlens.data.options import DataOptions, Kind
from convlens.data.pictures import decode_picture
from convlens.data.preprocessing import Array, Preprocessing
from convlens.data.series import as_float32
from convlens.data.sizing import square
from convlens.data.tables import class_numbers
from convlens.errors import BadFileError, DataError

__all__ = ["ArrayReader"]

_INPUT_WORDS = ("x", "images", "inputs", "data", "signals", "volumes", "samples", "features")
_LABEL_WORDS = ("y", "labels", "label", "targets", "target", "classes")
_SIDE_WORDS = {"train": 0, "dev": 1, "val": 1, "valid": 1, "test": 2}
_BAND_LIMIT = 4


class ArrayReader:
    """One ``.npz`` (``x``/``y``, ``x_train``/``y_test``, ``train_images`` …) or one ``.npy`` with its labels."""

    name = ".npy and .npz arrays"
    pictures = False

    def matches(self, source: str) -> bool:
        """A file with one of the two endings."""
        path = Path(source)
        return path.is_file() and path.suffix.lower() in (".npy", ".npz")

    def files(self, source: str, options: DataOptions) -> list[Path]:
        """The file, and for ``.npy`` its labels."""
        path = Path(source)
        if options.kind == "spectral":
            return SceneReader().files(source, options)
        return [path] if path.suffix.lower() == ".npz" else [path, _labels_beside(path, options)]

    def read(self, source: str, options: DataOptions, work: Work) -> Found:
        """Every sample, in the form that its axes say; ``--kind`` decides where they leave it open."""
        path = Path(source)
        if options.kind == "spectral":
            return SceneReader().read(source, options, work)
        if path.suffix.lower() == ".npz":
            parts, groups = _npz_parts(path, options)
        else:
            labels_path = _labels_beside(path, options)
            parts, groups = [(-1, load_npy(path, mapped=True), load_npy(labels_path))], None
        for _, values, labels in parts:
            if len(values) != len(labels):
                raise DataError(f"{source}: holds {len(values)} samples but {len(labels)} labels.")
        labels, class_names = _labels([labels for _, _, labels in parts])
        names = [f"{path.name}[{number}]" for number in range(len(labels))]
        given = np.concatenate([np.full(len(values), side, np.int8) for side, values, _ in parts])
        form = _form_of([values for _, values, _ in parts], labels, class_names, names, options, work)
        return Found(
            preprocessing=form.preprocessing,
            inputs=form.inputs,
            labels=labels,
            class_names=class_names,
            names=names,
            given=given if (given >= 0).any() and len(parts) > 1 else None,
            groups=groups,
            report=form.report,
        )


def _npz_parts(path: Path, options: DataOptions) -> tuple[list[tuple[int, Array, Array]], list[str] | None]:
    """``(side, inputs, labels)`` of each part, and the group of each sample where the file has one part."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # damaged archives raise anything from zipfile, zlib and NumPy's header parser
        raise BadFileError(f"{path}: is not a whole .npz of plain arrays ({error}).") from None
    parts: dict[int, dict[str, Array]] = {}
    for name, values in found.items():
        words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
        side = next((_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS), -1)
        role = "labels" if name == options.labels or any(word in _LABEL_WORDS for word in words) else None
        role = role or ("inputs" if any(word in _INPUT_WORDS for word in words) else None)
        role = role or ("groups" if any(word in ("group", "groups") for word in words) else None)
        if role:
            parts.setdefault(side, {})[role] = values
    whole = [(side, part["inputs"], part["labels"]) for side, part in sorted(parts.items()) if len(part) >= 2]
    if not whole:
        raise DataError(
            f"{path}: holds the arrays {', '.join(found)}; expected inputs and labels, such as x and y, or "
            "x_train, y_train, x_test and y_test."
        )
    groups = parts.get(-1, {}).get("groups") if len(whole) == 1 else None
    return whole, None if groups is None else [str(group) for group in groups]


def _labels_beside(path: Path, options: DataOptions) -> Path:
    if options.labels:
        return path.parent / options.labels
    stem = path.stem
    wanted = [f"{stem}_labels.npy", f"{stem}-labels.npy", f"{stem}_y.npy", "labels.npy", "y.npy"]
    for word, other in (("images", "labels"), ("inputs", "labels"), ("X", "y"), ("x", "y")):
        if word in stem:
            wanted.insert(0, stem.replace(word, other) + ".npy")
    for name in wanted:
        if (path.parent / name).is_file() and name != path.name:
            return path.parent / name
    raise DataError(f"{path}: found no labels; expected {wanted[0]} beside it. Fix: name the file with --labels.")


def _labels(parts: list[Array]) -> tuple[Array, tuple[str, ...]]:
    joined = np.concatenate(parts)
    if joined.ndim == 2 and joined.shape[1] > 1:
        values = set(np.unique(joined).tolist())
        if not values <= {0, 1}:
            raise DataError(f"labels of shape {joined.shape} must hold 0 and 1 only.")
        names = tuple(str(number) for number in range(joined.shape[1]))
        if (joined.sum(axis=1) == 1).all():
            return joined.argmax(axis=1).astype(np.int64), names
        return joined.astype(np.uint8), names
    return class_numbers([str(label) for label in joined.reshape(-1).tolist()])


def _kind_of(values: Array) -> Kind:
    """By the axes after the first: 1 signal; 2 pictures if uint8, else signals; 3 pictures; 4 volumes."""
    axes = values.ndim - 1
    if axes == 1:
        return "signal"
    if axes == 2:
        return "image" if values.dtype in (np.uint8, np.bool_) else "signal"
    if axes == 3:
        colours = values.shape[1] <= _BAND_LIMIT or values.shape[3] <= _BAND_LIMIT
        return "image" if colours else "volume"
    if axes == 4:
        return "volume"
    raise DataError(f"arrays of shape {values.shape} are neither signals, pictures nor volumes.")


def _form_of(
    parts: list[Array],
    labels: Array,
    class_names: tuple[str, ...],
    names: list[str],
    options: DataOptions,
    work: Work,
) -> Found:
    kind = options.kind or _kind_of(parts[0])
    if kind == "signal":
        wide = [as_float32(part) for part in parts]
        wide = [part[:, None] if part.ndim == 2 else part for part in wide]
        return signals_found(wide, labels, class_names, names, options)
    if kind == "image":
        preprocessing, inputs = _pictures(parts, options, work)
    elif kind == "volume":
        preprocessing, inputs = _volumes(parts, options, work)
    else:
        raise DataError(f"arrays cannot be read as {kind}; give --kind image, signal or volume.")
    report = Report(found=len(inputs), used=len(inputs))
    return Found(preprocessing, inputs, labels, class_names, names, report=report)


def _pictures(parts: list[Array], options: DataOptions, work: Work) -> tuple[Preprocessing, Array]:
    shape = parts[0].shape[1:]
    last = len(shape) == 3 and shape[2] <= _BAND_LIMIT
    rows, columns = shape[:2] if len(shape) == 2 or last else shape[1:]
    colours = 1 if len(shape) == 2 else shape[2] if last else shape[0]
    preprocessing = Preprocessing(
        kind="image",
        channels=options.channels or (3 if colours >= 3 else 1),
        size=square(options.size) or (rows, columns),
        fit=options.fit or "crop",
        scale=1 / 255,
    )
    work.writer.expect(sum(map(len, parts)), int(np.prod(preprocessing.shape)))
    for part in parts:
        for picture in part:
            work.writer.append(decode_picture(preprocessing, np.asarray(picture)))
    return preprocessing, work.writer.finish()


def _volumes(parts: list[Array], options: DataOptions, work: Work) -> tuple[Preprocessing, Array]:
    wide = [part[:, None] if part.ndim == 4 else part for part in parts]
    size = options.size * 3 if options.size and len(options.size) == 1 else options.size or wide[0].shape[2:]
    preprocessing = Preprocessing(
        kind="volume", channels=int(wide[0].shape[1]), size=size, fit=options.fit or "stretch", dtype="float32"
    )
    work.writer.expect(sum(map(len, wide)), 4 * int(np.prod(preprocessing.shape)))
    for part in wide:
        for volume in part:
            values = np.nan_to_num(as_float32(volume), posinf=0.0, neginf=0.0)
            work.writer.append(fitted_volume(values, preprocessing))
    return preprocessing, work.writer.finish()
