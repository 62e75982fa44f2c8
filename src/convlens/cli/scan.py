"""Look over a big picture with a classifier of small ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console

if TYPE_CHECKING:
    from PIL import Image

    from convlens.explain.scan import BigPicture, Scan

__all__ = ["run"]


def run(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run directory or model file.")] = None,
    image: Annotated[Path | None, typer.Argument(metavar="[BIG_IMAGE]", help="The picture.")] = None,
    scales: Annotated[
        str, typer.Option(help="Sizes to look at, relative to the picture; below 1 finds larger things.")
    ] = "1",
    label: Annotated[
        list[str] | None, typer.Option(help="Class to look for, repeatable; all but 'background' if left out.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest probability of a detection.")] = 0.9,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Intersection over union up to which two detections both stay.")
    ] = 0.2,
    tile: Annotated[int, typer.Option(min=1, help="Pixels along a tile's side; less takes less memory.")] = 768,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse larger pictures before decoding them.")
    ] = 500_000_000,
    heat: Annotated[Path | None, typer.Option(help="Where the heat map goes; default beside BIG_IMAGE.")] = None,
    boxes: Annotated[Path | None, typer.Option(help="Also write the picture with the boxes drawn.")] = None,
    find: Annotated[
        bool, typer.Option("--find", help="Demo: hide figures in a crowd, train on patches, find them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the demo.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Look over a big picture with a classifier of small ones.

    The net is made fully convolutional and answers at every place; the picture goes through it in tiles whose
    result is that of one pass. Detections overlap no more than --overlap; the heat map shows the probability of
    the wanted classes at each place.
    """
    if find:
        from convlens.cli._find import find_in_crowd

        find_in_crowd(boxes or Path("crowd.png"), seed, device, json)
        return
    if run is None or image is None:
        raise typer.BadParameter("expected RUN and BIG_IMAGE, or --find", param_hint="RUN BIG_IMAGE")
    from PIL import Image

    from convlens.data.progress import visible
    from convlens.explain.scan import Scanner, open_big_picture
    from convlens.modelfile import load
    from convlens.training.machine import device_of

    factors = _factors(scales)
    predictor = load(run, device_of(device))
    picture = open_big_picture(image, predictor, max_pixels)
    scan = Scanner(predictor, tile).scan(picture, factors, label or (), threshold, overlap, visible)
    target = heat or image.with_name(f"{image.stem}-heat.png")
    Image.fromarray(hot(scan.heat())).save(target)
    if boxes is not None:
        with_boxes(picture, scan).save(boxes)
    if json:
        print_json({"image": str(image), "heat": str(target), **scan.to_dict()})
        return
    print_detections(scan)
    status_console().print(f"wrote {target}" + (f" and {boxes}" if boxes else ""), markup=False)


def print_detections(scan: Scan) -> None:
    """One line for each detection."""
    out = result_console()
    for found in scan.detections:
        left, top, right, bottom = (round(n) for n in found.box)
        where = f"{left},{top} to {right},{bottom}"
        out.print(f"{found.label}  {100 * found.probability:.1f} %  {where}  scale {found.scale:g}", markup=False)
    places = sum(places.probability.size for places in scan.maps)
    out.print(f"{len(scan.detections)} found at {places:,} places looked at.")


def with_boxes(picture: BigPicture, scan: Scan) -> Image.Image:
    """The picture, as a whole, with a frame around each detection."""
    from PIL import Image, ImageDraw

    whole = picture if isinstance(picture, Image.Image) else picture.crop((0, 0, *picture.size))
    drawn = whole.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    width = max(2, max(picture.size) // 600)
    for found in scan.detections:
        pen.rectangle(found.box, outline=(0, 90, 255), width=width)
    return drawn


def hot(heat: Any) -> Any:
    """0–1 as black, red, yellow, white: uint8 ``[height, width, 3]``."""
    import numpy as np

    return np.stack([np.clip(3 * heat - n, 0, 1) * 255 for n in range(3)], axis=-1).round().astype(np.uint8)


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 1,0.5,0.25, received {text!r}") from None
