"""Networks that a user names, and rows that are put together."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from convlens.bench import results
from convlens.bench.net_cases import net_cases
from convlens.bench.nets import NetRow, measure_nets
from convlens.errors import ArgumentError
from convlens.planner.timing import Timing


def tiny() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())


def no_net() -> int:
    return 3


def row(name: str, batch: int, ratio: float) -> NetRow:
    time = Timing(1.0, 1.0, 1.0, 3)
    return NetRow(name, batch, time, "way", "torch", {"torch": (ratio,) * 3}, 0.0, 1.0, {"torch": time}, "today")


def test_a_function_of_the_users_is_a_case() -> None:
    (case,) = net_cases([f"{__name__}:tiny@3,12,10"])
    assert case.input_shape == (3, 12, 10)
    assert case.plain()(torch.zeros(1, 3, 12, 10)).shape == (1, 4, 10, 8)
    assert case.macs() == 4 * 3 * 9 * 80


@pytest.mark.parametrize("name", [f"{__name__}:no_net", f"{__name__}:nothing", "nowhere:tiny"])
def test_what_is_no_network_is_said(name: str) -> None:
    (case,) = net_cases([name])
    with pytest.raises(ArgumentError, match="names"):
        case.plain()


@pytest.mark.parametrize("shape", ["3", "3,0,4", "3,x", ""])
def test_shapes_behind_the_at(shape: str) -> None:
    with pytest.raises(ArgumentError, match="channels and sizes"):
        net_cases([f"timm/resnet18@{shape}"])


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_a_network_of_its_is_left_out() -> None:
    left_out: dict[str, str] = {}
    assert not list(measure_nets(net_cases(["timm/resnet18"]), skipped=left_out.__setitem__))
    assert "pip install timm" in left_out["timm/resnet18"]


def test_rows_are_read_again(tmp_path) -> None:
    rows = [row("one", 1, 2.0), row("two", 32, 8.0)]
    assert results.read_nets(tmp_path) == []
    data, _ = results.write_nets(rows, tmp_path)
    assert results.read_nets(tmp_path) == rows
    document = json.loads(data.read_text())
    assert document["geometric_mean_ratio"] == {"torch": pytest.approx(4.0)}
    assert document["geometric_mean_ratio_by_batch"]["32"] == {"torch": pytest.approx(8.0)}
    document["environment"]["threads"] = 99
    data.write_text(json.dumps(document))
    with pytest.raises(ArgumentError, match="threads"):
        results.read_nets(tmp_path)
    data.write_text("{}")
    with pytest.raises(ArgumentError, match="that this command wrote"):
        results.read_nets(tmp_path)
