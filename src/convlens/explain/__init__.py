"""A model and a batch to plain records of what happened inside: no HTML, no files.

=================  =====================================================================================
`layer_table`      per layer: shape, weights, cost, time, share of the attainable, plan
`opened`           a twin whose fused blocks are written out, for all the others
`feature_maps`     what every channel answers to one input
`learned_filters`  the filters of every layer, named by what they resemble
`effective_field`  what a unit sees, by its gradient
`most_exciting`    the pictures that excite a unit most; `exciting_samples` for several layers, within a time
`class_evidence`   where the evidence for a class lies (Grad-CAM, integrated gradients)
`adversarial`      the smallest change that turns the answer
`mistakes`         confusion, worst examples, calibration
`output_pixel`     one number taken apart; `weight_gradient`, `input_gradient` likewise
`filter_image`     hand-designed filters on pictures; `hybrid`
=================  =====================================================================================
"""

from __future__ import annotations

from convlens.explain.adversary import Adversary, adversarial
from convlens.explain.capture import Captured, capture, layer_names, named_layer
from convlens.explain.evidence import Evidence, class_evidence, evidence_layer
from convlens.explain.excite import Excitation, Excitations, exciting_samples, most_exciting
from convlens.explain.filtering import BORDERS, filter_image, hybrid, parse_kernel
from convlens.explain.graph import INPUT, between, layer_graph
from convlens.explain.layer_table import LayerReport, layer_table, problem_of
from convlens.explain.maps import FeatureMaps, feature_maps
from convlens.explain.mistakes import CalibrationBin, ConfusedPair, Mistake, Mistakes, mistakes
from convlens.explain.opened import opened
from convlens.explain.pixel import (
    Convolution,
    InputGradient,
    OutputPixel,
    WeightGradient,
    input_gradient,
    output_pixel,
    weight_gradient,
)
from convlens.explain.receptive import EffectiveField, effective_field
from convlens.explain.resemblance import LearnedFilter, learned_filters, resemblance

__all__ = [
    "BORDERS",
    "INPUT",
    "Adversary",
    "CalibrationBin",
    "Captured",
    "ConfusedPair",
    "Convolution",
    "EffectiveField",
    "Evidence",
    "Excitation",
    "Excitations",
    "FeatureMaps",
    "InputGradient",
    "LayerReport",
    "LearnedFilter",
    "Mistake",
    "Mistakes",
    "OutputPixel",
    "WeightGradient",
    "adversarial",
    "between",
    "capture",
    "class_evidence",
    "effective_field",
    "evidence_layer",
    "exciting_samples",
    "feature_maps",
    "filter_image",
    "hybrid",
    "input_gradient",
    "layer_graph",
    "layer_names",
    "layer_table",
    "learned_filters",
    "mistakes",
    "most_exciting",
    "named_layer",
    "opened",
    "output_pixel",
    "parse_kernel",
    "problem_of",
    "resemblance",
    "weight_gradient",
]
