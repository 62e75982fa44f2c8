"""Pooling by its definition, one window at a time in plain Python: the second opinion of the pooling tests."""

from __future__ import annotations

import itertools
import math

import torch


def source(position: int, size: int, mode: str) -> int | None:
    """Which input element a padded position copies; None for zeros."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    line = list(range(size))
    mirrored = line + line[::-1] if mode == "symmetric" else line + line[-2:0:-1]
    return mirrored[position % len(mirrored)]


def windows(x, kernel, stride, pads, dilation, mode, outputs):
    """For each output position: its window as (flat plane position or None, within what is padded)."""
    size = x.shape[-len(kernel) :]
    for out in itertools.product(*(range(n) for n in outputs)):
        elements = []
        for tap in itertools.product(*(range(k) for k in kernel)):
            flat, padded = 0, True
            for axis in range(len(kernel)):
                position = out[axis] * stride[axis] + tap[axis] * dilation[axis] - pads[axis][0]
                padded = padded and position < size[axis] + pads[axis][1]
                at = source(position, size[axis], mode) if padded else None
                flat = None if flat is None or at is None else flat * size[axis] + at
            elements.append((flat, padded))
        yield elements


def max_pool(x, kernel, stride, pads, dilation, mode, outputs):
    planes = x.reshape(-1, math.prod(x.shape[-len(kernel) :])).tolist()
    values, places = [], []
    for plane in planes:
        for elements in windows(x, kernel, stride, pads, dilation, mode, outputs):
            best, where = -math.inf, None
            for flat, _ in elements:
                if flat is not None and (where is None or plane[flat] > best or plane[flat] != plane[flat]):
                    best, where = plane[flat], flat
            values.append(best)
            places.append(where)
    shape = (*x.shape[: -len(kernel)], *outputs)
    return torch.tensor(values, dtype=torch.float64).reshape(shape), places


def avg_pool(x, kernel, stride, pads, mode, outputs, count_include_pad, divisor):
    planes = x.reshape(-1, math.prod(x.shape[-len(kernel) :])).tolist()
    values = []
    for plane in planes:
        for elements in windows(x, kernel, stride, pads, (1,) * len(kernel), mode, outputs):
            total = sum(plane[flat] for flat, _ in elements if flat is not None)
            if count_include_pad:
                count = sum(padded for _, padded in elements)
            else:
                count = sum(flat is not None for flat, _ in elements)
            values.append(total / (divisor or max(count, 1)))
    return torch.tensor(values, dtype=torch.float64).reshape(*x.shape[: -len(kernel)], *outputs)
