"""Draws docs/images/digits.png: test digits that a run was least sure of, with its answers.

convlens train digits --out RUN && python docs/make_readme_picture.py RUN
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import convlens

COLUMNS, ROWS, CELL, GAP, BAR = 10, 3, 72, 14, 58
INK, RIGHT, WRONG, PAPER, FAINT = "#1f2933", "#2f855a", "#c53030", "#ffffff", "#d9e2ec"


def main(run: str) -> None:
    model = convlens.load(run)
    dataset = convlens.data.open("digits")
    inputs, labels = dataset.tensors("test")
    table = model.probabilities(inputs).numpy()
    unsure = np.argsort(table.max(axis=1))[: COLUMNS * ROWS]
    width = COLUMNS * (CELL + GAP) + GAP
    height = ROWS * (CELL + BAR) + GAP
    sheet = Image.new("RGB", (2 * width, 2 * height), PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(40), ImageFont.load_default(22)
    for place, sample in enumerate(unsure):
        left = 2 * (GAP + (place % COLUMNS) * (CELL + GAP))
        top = 2 * (GAP + (place // COLUMNS) * (CELL + BAR))
        digit = Image.fromarray(255 - inputs[sample, 0].numpy()).resize(
            (2 * CELL, 2 * CELL), Image.Resampling.BICUBIC
        )
        sheet.paste(digit, (left, top))
        answer, probability = int(table[sample].argmax()), float(table[sample].max())
        right = answer == int(labels[sample])
        colour = RIGHT if right else WRONG
        below = top + 2 * CELL + 10
        draw.rectangle((left, below, left + 2 * CELL, below + 8), fill=FAINT)
        draw.rectangle((left, below, left + int(2 * CELL * probability), below + 8), fill=colour)
        draw.text((left, below + 14), str(answer), fill=colour, font=large)
        if not right:
            draw.text((left + 32, below + 26), f"is {int(labels[sample])}", fill=colour, font=small)
        draw.text((left + 2 * CELL, below + 26), f"{100 * probability:.0f} %", fill=INK, font=small, anchor="ra")
    path = Path(__file__).parent / "images" / "digits.png"
    sheet.quantize(128, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    accuracy = (torch.from_numpy(table).argmax(1) == labels).float().mean()
    print(
        f"{path}: the {len(unsure)} of {len(labels)} test digits it was least sure of; {accuracy:.2%} of all right"
    )


if __name__ == "__main__":
    main(sys.argv[1])
