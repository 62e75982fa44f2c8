"""The lectures' worked examples, ready to step through in the playground: rows B1, B6, B7, B11, B12, D2."""

from __future__ import annotations

from typing import Any

__all__ = ["LESSONS"]


def _counting(first: int, rows: int = 3, columns: int = 3) -> list[list[float]]:
    return [[float(first + r * columns + c) for c in range(columns)] for r in range(rows)]


_STEP_IMAGE = [[1.0, 1.0, 0.0, 0.0, 0.0] for _ in range(4)]
_RGB = [
    [[0.0, 1, 1, 2, 2], [0, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 1, 1], [0, 2, 0, 1, 0]],
    [[1.0, 1, 1, 2, 0], [0, 2, 1, 1, 2], [1, 2, 0, 0, 2], [0, 2, 1, 2, 1], [2, 0, 1, 2, 0]],
    [[2.0, 0, 2, 0, 2], [0, 0, 1, 2, 1], [1, 0, 2, 2, 1], [2, 0, 2, 0, 0], [0, 0, 1, 1, 2]],
]
_FILTERS = [
    [
        [[-1.0, 0, 1], [0, 0, 1], [1, -1, 1]],
        [[-1.0, 0, 1], [1, -1, 1], [0, 1, 0]],
        [[-1.0, 1, 1], [1, 1, 0], [0, -1, 0]],
    ],
    [
        [[0.0, 1, -1], [0, -1, 0], [0, -1, 1]],
        [[-1.0, 0, 0], [1, -1, 0], [1, -1, 0]],
        [[-1.0, 1, -1], [0, -1, -1], [1, 0, 0]],
    ],
]

LESSONS: list[dict[str, Any]] = [
    {
        "row": "B1",
        "title": "Cross-correlation by hand",
        "text": "Lay the kernel over the top left corner, multiply each pair, add the products. Slide one to the "
        "right, and again. A 3×3 input and a 2×2 kernel give 2×2 sums.",
        "input": [_counting(0)],
        "weight": [[[[0.0, 1.0], [2.0, 3.0]]]],
    },
    {
        "row": "B6",
        "title": "Padding and stride",
        "text": "Padded by one on every side, the kernel also sees the border. "
        "Strides of 3 down and 2 across leave ⌊(3−2+2+3)/3⌋ × ⌊(3−2+2+2)/2⌋ = 2×2 sums.",
        "input": [_counting(0)],
        "weight": [[[[0.0, 1.0], [2.0, 3.0]]]],
        "padding": [1, 1],
        "stride": [3, 2],
    },
    {
        "row": "B7",
        "title": "Several input channels",
        "text": "Each channel has a kernel of its own; the sums of all channels are added.",
        "input": [_counting(0), _counting(1)],
        "weight": [[[[0.0, 1.0], [2.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]]],
    },
    {
        "row": "B11",
        "title": "A filter that looks for an X",
        "text": "The sum is largest where the picture under the window looks most like the kernel.",
        "input": [[[1.0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]],
        "weight": [[[[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]]],
    },
    {
        "row": "B12",
        "title": "Colour in, two filters out",
        "text": "5×5×3 padded to 7×7×3, two filters 3×3×3 with a bias, stride 2: 3×3×2. Nine products in each of "
        "three channels, and the bias: 28 numbers make one.",
        "input": _RGB,
        "weight": _FILTERS,
        "bias": [1.0, 0.0],
        "padding": [1, 1],
        "stride": [2, 2],
    },
    {
        "row": "D2",
        "title": "Pooling forgives a shift",
        "text": "The kernel [1, −1] answers 1 where bright turns dark. "
        "After a 2×2 maximum the answer stays in the same place "
        "when the edge moves by one pixel: change the input and see.",
        "input": [_STEP_IMAGE],
        "weight": [[[[1.0, -1.0]]]],
        "pool": 2,
    },
]
