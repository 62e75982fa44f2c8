"""The bench harness: cases, peers that agree with torch, rows, results on disk."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest
import torch

from convlens.bench import results
from convlens.bench.cases import LayerCase, layer_cases
from convlens.bench.layers import measure_layers
from convlens.bench.peers import layer_peers
from convlens.errors import ArgumentError
from convlens.planner.trial import operands_for
from convlens.window import ConvProblem

SMALL = ConvProblem("forward", 2, 4, (9, 9), 6, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))


def test_the_set_holds_42_layers_and_the_lecture_layer_has_its_cost():
    cases = {case.name: case.problem for case in layer_cases()}
    assert len(cases) == 42
    assert cases["lecture"].macs == 8 * 1_024_000_000  # row B9
    assert cases["wavenet_1d"].input_size == (84350,)
    assert cases["x3d_depthwise"].groups == 108
    assert all(min(problem.output_size) >= 1 for problem in cases.values())


def test_unknown_layer_is_named():
    with pytest.raises(ArgumentError, match="received 'lenet9'"):
        layer_cases(["lenet9"])


def test_forward_peers_compute_the_same():
    input, weight, _ = operands_for(SMALL)
    expected = torch.nn.functional.conv2d(input, weight, stride=2, padding=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other engines' own deprecations
        for name, call in layer_peers(SMALL, "forward", compiled=False).items():
            got = call()
            if not isinstance(got, torch.Tensor):  # a list, or openvino's mapping
                got = torch.from_numpy(got[0])
            torch.testing.assert_close(got, expected, msg=name)


def test_rows_and_results(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    case = LayerCase("small", replace(SMALL, batch=1))
    rows = list(measure_layers([case], repeats=3, budget_s=0.01))
    assert [row.direction for row in rows] == ["forward", "backward"]
    assert all(row.ratio[0] <= row.ratio[1] <= row.ratio[2] for row in rows)
    data, picture = results.write(rows, tmp_path)
    written = json.loads(data.read_text())
    assert written["environment"]["threads"] == torch.get_num_threads()
    assert set(written["geometric_mean_ratio"]) == {"forward", "backward"}
    assert "small forward" in picture.read_text()
    assert results.table(rows).row_count == 4
