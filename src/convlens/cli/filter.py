"""Apply a hand-designed filter to a picture, or mix two into a hybrid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, status_console

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["run"]


def run(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    kernel: Annotated[
        str,
        typer.Option(
            help="identity, sobel_x, sobel_y, prewitt_x, prewitt_y, laplacian, sharpen, emboss, box, gaussian, … "
            "or numbers with rows between semicolons: '0,1,0; 1,-4,1; 0,1,0'.",
        ),
    ] = "sobel_x",
    size: Annotated[int | None, typer.Option(help="Side of box and gaussian in pixels, odd.")] = None,
    sigma: Annotated[float | None, typer.Option(help="Deviation of gaussian in pixels.")] = None,
    border: Annotated[
        str, typer.Option(help="Beyond the edge: symmetric, reflect, replicate, circular or zeros.")
    ] = "symmetric",
    hybrid: Annotated[
        Path | None, typer.Option(help="A picture of the same size for close by; IMAGE is what is seen from afar.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; default beside IMAGE.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Filter a picture by hand; edges are shown as grey 128 ± the answer."""
    import numpy as np
    from PIL import Image

    from convlens import explain

    shown = _opened(image)
    pixels = np.asarray(shown)
    if hybrid is not None:
        near = np.asarray(_opened(hybrid).convert(shown.mode).resize(shown.size))
        result = explain.hybrid(pixels, near, sigma=sigma or 6.0)
        record: dict[str, object] = {"hybrid": [str(image), str(hybrid)], "sigma": sigma or 6.0}
        name = "hybrid"
    else:
        weights = _kernel(kernel, size, sigma)
        result = explain.filter_image(pixels, weights, border)
        signed = abs(float(weights.sum())) < 1e-6
        # an edge filter answers with both signs: grey is 'nothing found'
        result = result / float(weights.abs().sum()) + 128 if signed else result
        record = {"kernel": weights.tolist(), "border": border, "signed": signed}
        name = kernel if kernel.isidentifier() else "custom"
    target = out or image.with_name(f"{image.stem}-{name}.png")
    Image.fromarray(_rounded(result)).save(target)
    if as_json:
        print_json(record | {"out": str(target), "width": shown.width, "height": shown.height})
    else:
        status_console().print(f"wrote {target}")


def _opened(path: Path) -> Any:
    from PIL import Image, ImageOps

    from convlens.errors import BadFileError, PathError

    if not path.is_file():
        raise PathError(f"{path}: no such picture.")
    try:
        picture = ImageOps.exif_transpose(Image.open(path))
        return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise BadFileError(f"{path} cannot be read as a picture: {error}.") from error


def _kernel(text: str, size: int | None, sigma: float | None) -> Any:
    from convlens import explain
    from convlens.layers.filters import hand_filter

    if text.replace("_", "").isalnum() and not text.isdigit():
        return hand_filter(text, size=size, sigma=sigma)
    return explain.parse_kernel(text)


def _rounded(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    import numpy as np

    rounded: npt.NDArray[Any] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
