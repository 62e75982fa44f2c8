"""How raw input becomes what the net sees: one record, used alike by training, prediction and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from convlens.data.options import Fit, Kind

if TYPE_CHECKING:
    import torch

__all__ = ["Array", "Preprocessing"]

Array = npt.NDArray[Any]

_SPATIAL_AXES: dict[str, int] = {"image": 2, "signal": 1, "sequence": 1, "volume": 3, "spectral": 2}


class Preprocessing(BaseModel):
    """Everything needed to turn a file, bytes or an array into the net's input; JSON in the model file.

    `decode` gives the *storage form*: one sample as ``[channels, *size]`` of `dtype`. `normalise` turns a batch of
    stored samples into float32: ``(x * scale - mean) / std`` per channel, with mean and std of the training part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    channels: int
    size: tuple[int, ...]
    fit: Fit = "crop"
    dtype: Literal["uint8", "float32"] = "uint8"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resample: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    pad_value: float = 0.0
    background: int = 255
    alphabet: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Preprocessing:
        axes = _SPATIAL_AXES[self.kind]
        if len(self.size) != axes:
            raise ValueError(f"size: a {self.kind} has {axes} spatial axes, received {self.size}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise ValueError(
                    f"{name}: expected one value for each of {self.channels} channels, got {len(values)}"
                )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, ``(channels, *size)``."""
        return (self.channels, *self.size)

    def decode(self, raw: str | Path | bytes | Array | Any) -> Array:
        """One raw input as a storage-form array ``[channels, *size]`` of `dtype`.

        Args:
            raw: a path, the bytes of a file, an array, for images a ``PIL.Image``, for sequences the letters.

        Raises:
            BadFileError: the input cannot be decoded; the text names the file and the reason.
            PathError: no such file.
        """
        from convlens.data.decoding import decode

        return decode(self, raw)

    def coefficients(self) -> tuple[Array, Array]:
        """``(gain, offset)``, float32 ``[channels]`` each, so that ``normalise(x) = x * gain + offset``."""
        mean = np.asarray(self.mean or (0.0,) * self.channels, np.float64)
        std = np.asarray(self.std or (1.0,) * self.channels, np.float64)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Stored samples ``[N, channels, *size]`` of any dtype as float32, scaled and shifted per channel."""
        import torch

        gain, offset = self.coefficients()
        per_channel = (1, -1) + (1,) * (batch.dim() - 2)
        values = batch.to(torch.float32)  # uint8 and float64 both copy here, so the in-place steps are safe
        if values is batch:
            values = batch.clone()
        values.mul_(torch.from_numpy(gain).to(batch.device).view(per_channel))
        return values.add_(torch.from_numpy(offset).to(batch.device).view(per_channel))

    def denormalise(self, batch: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise`, float32, in storage units: for pictures of what the net sees."""
        import torch

        gain, offset = self.coefficients()
        per_channel = (1, -1) + (1,) * (batch.dim() - 2)
        shifted = batch.to(torch.float32) - torch.from_numpy(offset).to(batch.device).view(per_channel)
        return shifted / torch.from_numpy(gain).to(batch.device).view(per_channel)
