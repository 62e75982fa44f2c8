"""Every exception that convlens raises on purpose.

::

    ConvlensError
    ├── ArgumentError (ValueError, RuntimeError)  a call that cannot be computed
    │   ├── ShapeError                            sizes that do not fit
    │   ├── DtypeError (TypeError)                element types that do not fit
    │   ├── UnsupportedError                      legal, but this algorithm or device cannot
    │   └── BudgetError                           would take more memory than allowed
    ├── DataError                                 files on disk that cannot become a data set
    │   ├── PathError                             no such path, or not readable
    │   └── BadFileError                          one file that cannot be decoded
    ├── ModelFileError                            a model file that is not ours, damaged or too new
    ├── RecipeError                               an unknown or impossible setting
    ├── TrainingError                             training cannot go on (diverged, interrupted)
    ├── DeviceError                               a device that is not there
    ├── StorageError                              no space, no permission
    └── MissingExtraError                         an optional library is not installed

`ArgumentError` is a ``ValueError`` and a ``RuntimeError`` so that code written for torch's operators,
which raise either, still catches it.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BadFileError",
    "BudgetError",
    "ConvlensError",
    "DataError",
    "DeviceError",
    "DtypeError",
    "MissingExtraError",
    "ModelFileError",
    "PathError",
    "RecipeError",
    "ShapeError",
    "StorageError",
    "TrainingError",
    "UnsupportedError",
]


class ConvlensError(Exception):
    """Base of every error that convlens raises on purpose; its text is one clear paragraph."""


class ArgumentError(ConvlensError, ValueError, RuntimeError):
    """A call that cannot be computed.

    Args:
        argument: name of the argument at fault, as the caller wrote it.
        expected: what would have been right, with the numbers put in.
        received: what came.
        fix: the edit that mends it, when there is one.
    """

    def __init__(self, argument: str, expected: str, received: object, fix: str | None = None) -> None:
        self.argument = argument
        self.expected = expected
        self.received = received
        self.fix = fix
        text = f"{argument}: expected {expected}, received {received}."
        super().__init__(f"{text} Fix: {fix}." if fix else text)


class ShapeError(ArgumentError):
    """Sizes that do not fit together."""


class DtypeError(ArgumentError, TypeError):
    """Element types that do not fit together, or that the operator does not take."""


class UnsupportedError(ArgumentError):
    """A legal request that the named algorithm, device or layout cannot compute."""


class BudgetError(ArgumentError):
    """A request that would take more memory than the budget allows."""


class DataError(ConvlensError):
    """Files on disk that cannot become a data set."""


class PathError(DataError):
    """No such path, or one that cannot be read."""


class BadFileError(DataError):
    """One file that cannot be decoded."""


class ModelFileError(ConvlensError):
    """A model file that is not ours, damaged, or written by a newer version."""


class RecipeError(ConvlensError):
    """An unknown or impossible setting."""


class TrainingError(ConvlensError):
    """Training cannot go on."""


class DeviceError(ConvlensError):
    """A device that is not there."""


class StorageError(ConvlensError):
    """No space, or no permission to write."""


class MissingExtraError(ConvlensError):
    """An optional library is not installed.

    Args:
        library: the distribution that is missing.
        extra: the extra of convlens that brings it.
        purpose: what needs it.
    """

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        self.library = library
        self.extra = extra
        super().__init__(
            f"{purpose} needs {library}, which is not installed. Install it with: pip install 'convlens[{extra}]'"
        )
