"""What the user may choose about a data set; flags, recipe fields and help derive from this one record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from convlens.errors import RecipeError

__all__ = ["DataOptions", "Fit", "Kind", "options_from", "parse_fold"]

Kind = Literal["image", "signal", "sequence", "volume", "spectral"]
Fit = Literal["crop", "pad", "stretch"]


class DataOptions(BaseModel):
    """Choices that change what a data set holds; every one has a default taken from the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, ...] | None = Field(
        None,
        description="spatial size of every input; one number stands for a square or cube (default: from the data)",
    )
    channels: int | None = Field(None, ge=1, description="1 grey, 3 colour (default: from the data)")
    fit: Fit | None = Field(
        None, description="how an input of another shape is made to fit (default: from the data)"
    )
    split: tuple[float, float, float] | None = Field(
        None,
        description="fractions of train, dev and test (default: 60/20/20 for small data … 98/1/1 for millions)",
    )
    split_seed: int = Field(0, ge=0, description="another number gives another random split")
    fold: str | None = Field(
        None, description="cross-validation: K/N makes the K-th of N equal parts the test part, 1/10 … 10/10"
    )
    on_bad_file: Literal["skip", "fail"] = Field(
        "skip", description="a file that cannot be decoded is skipped or fatal"
    )
    patch: int = Field(1, ge=1, description="hyperspectral scenes: side of the square around each pixel, odd")
    kind: Kind | None = Field(
        None, description="what the inputs are, where a file does not say (.npy, .csv, .mat)"
    )
    labels: str | None = Field(
        None, description="a second file or key that holds the labels, where the source has none"
    )

    @field_validator("size", mode="before")
    @classmethod
    def _one_number_or_several(cls, value: Any) -> Any:
        if isinstance(value, int):
            value = (value,)
        try:
            wrong = value is not None and any(int(side) < 1 for side in value)
        except (TypeError, OverflowError):  # no list, or infinite
            raise ValueError(f"expected one or several whole numbers, received {value!r}") from None
        if wrong:
            raise ValueError(f"every side must be at least 1, received {tuple(value)}")
        return value

    @field_validator("split")
    @classmethod
    def _fractions(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and (min(value) < 0 or value[0] <= 0 or abs(sum(value) - 1) > 1e-6):
            raise ValueError(f"train, dev and test must be fractions that add up to 1, received {value}")
        return value

    @field_validator("fold")
    @classmethod
    def _fold_of_folds(cls, value: str | None) -> str | None:
        if value is not None and parse_fold(value) is None:
            raise ValueError(f"expected K/N with 1 ≤ K ≤ N and N from 2 to 1000, received {value!r}")
        return value

    @field_validator("patch")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"must be odd, so that the patch has a middle pixel, received {value}")
        return value


def parse_fold(text: str) -> tuple[int, int] | None:
    """``"3/10"`` → ``(3, 10)``; None where it is no fold."""
    number, _, count = text.partition("/")
    if not (number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        return None
    fold, folds = int(number[:9]), int(count[:9])
    return (fold, folds) if 1 <= fold <= folds and 2 <= folds <= 1000 else None


def options_from(values: dict[str, Any]) -> DataOptions:
    """Check plain values; an unknown or impossible one raises `RecipeError` that names the accepted ones."""
    unknown = sorted(set(values) - set(DataOptions.model_fields))
    if unknown:
        accepted = ", ".join(DataOptions.model_fields)
        raise RecipeError(f"Unknown data option {', '.join(unknown)}. Accepted: {accepted}.")
    try:
        return DataOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"Data option {where}: {first['msg']} (received {first['input']!r}).") from None
