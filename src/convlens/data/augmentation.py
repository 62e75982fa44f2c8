"""What may be changed in a training sample without changing its class (row I1): one record of amounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from convlens.data.preprocessing import Preprocessing

__all__ = ["Augmentation", "default_augmentation"]


class Augmentation(BaseModel):
    """Amounts of change; each is drawn anew for every sample and epoch, evenly between its two ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mirror: bool = Field(
        default=False, description="left and right exchanged half the time; a sequence's other strand"
    )
    flip: bool = Field(default=False, description="top and bottom exchanged half the time")
    shift: float = Field(
        default=0.0, ge=0, le=0.5, description="moved by up to this share of a side, in whole pixels"
    )
    crop: float = Field(default=1.0, gt=0, le=1, description="smallest share of the area that a random crop keeps")
    scale: float = Field(default=0.0, ge=0, lt=1, description="enlarged or reduced by up to this share")
    stretch: float = Field(
        default=0.0, ge=0, lt=1, description="one side enlarged against the other by up to this share"
    )
    rotate: float = Field(default=0.0, ge=0, le=180, description="turned by up to so many degrees")
    shear: float = Field(default=0.0, ge=0, le=60, description="slanted by up to so many degrees")
    brightness: float = Field(
        default=0.0, ge=0, le=1, description="lighter or darker by up to this share of the range"
    )
    contrast: float = Field(
        default=0.0, ge=0, lt=1, description="contrast (amplitude) changed by up to this share"
    )
    saturation: float = Field(
        default=0.0, ge=0, le=1, description="colours stronger or weaker by up to this share"
    )
    hue: float = Field(default=0.0, ge=0, le=180, description="colours turned by up to so many degrees")
    noise: float = Field(default=0.0, ge=0, le=2, description="Gaussian noise, in deviations of the data")
    mutate: float = Field(
        default=0.0, ge=0, le=1, description="sequences: share of the letters replaced by another"
    )
    erase: float = Field(default=0.0, ge=0, le=1, description="how often a random box is blanked")
    erase_area: float = Field(default=0.25, gt=0, le=1, description="largest share of the area that is blanked")
    mixup: float = Field(
        default=0.0, ge=0, le=10, description="two samples blended; alpha of the Beta distribution"
    )
    cutmix: float = Field(
        default=0.0, ge=0, le=10, description="a box from another sample pasted in; alpha of the Beta"
    )
    border: Literal["reflect", "edge", "zeros"] = Field(default="edge", description="what comes in from outside")

    @property
    def resamples(self) -> bool:
        """True where values between pixels are needed, so that gathering whole pixels does not do."""
        return bool(self.crop < 1 or self.scale or self.stretch or self.rotate or self.shear)

    @property
    def mixes(self) -> bool:
        """True where targets become mixtures of two classes."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes_nothing(self) -> bool:
        """True where a sample comes out as it went in."""
        amounts = ("mirror", "flip", "shift", "brightness", "contrast", "saturation", "hue", "noise", "mutate")
        return not (self.resamples or self.mixes or self.erase or any(getattr(self, name) for name in amounts))


def default_augmentation(preprocessing: Preprocessing, class_names: Sequence[str] = ()) -> Augmentation:
    """Sensible amounts for a kind of data.

    Grey pictures and classes named by single characters (digits, letters) are not mirrored: a mirrored 2 is no 2.
    """
    choices: dict[str, Any] = {
        "signal": {"shift": 0.05, "contrast": 0.1, "noise": 0.05},
        "sequence": {"shift": 0.03, "mutate": 0.02, "border": "zeros"},
        "volume": {"shift": 0.06, "rotate": 8.0, "scale": 0.08, "contrast": 0.1},
        "spectral": {"contrast": 0.05, "noise": 0.02},
    }
    if preprocessing.kind != "image":
        found = dict(choices[preprocessing.kind])
        if preprocessing.kind == "spectral" and min(preprocessing.size) > 1:
            found |= {"mirror": True, "flip": True}
        return Augmentation(**found)
    characters = bool(class_names) and all(len(name) == 1 for name in class_names)
    if characters or preprocessing.channels == 1:
        return Augmentation(shift=0.07, rotate=8.0, scale=0.08, shear=6.0)
    if min(preprocessing.size) < 64:
        return Augmentation(mirror=True, shift=0.125, border="reflect")
    return Augmentation(
        mirror=True, crop=0.5, stretch=0.15, brightness=0.1, contrast=0.2, saturation=0.2, border="reflect"
    )
