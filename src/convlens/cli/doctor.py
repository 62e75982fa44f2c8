"""Find what is wrong with a data set, a network or a run, each finding with the edit that mends it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlens.cli._output import JsonFlag, print_json, result_console

if TYPE_CHECKING:
    from convlens.data.doctor import DataFinding

_MARKS = {"error": "red", "warning": "yellow", "note": "cyan"}


def run(
    target: Annotated[
        str, typer.Argument(metavar="DATA|MODEL|RUN", help="Data by name or path, a network's name, or a run.")
    ],
    json: JsonFlag = False,
) -> None:
    """Find what is wrong with a data set, a network or a run, each finding with the edit that mends it.

    A run (or model file) tells what its errors say (bias, variance, mismatch), its dead units and gradients,
    and what the shape of its network says; a network's name only the last.
    """
    if _is_run(Path(target)):
        _print_model(target, *_examine_run(target), json)
    elif _is_network(target):
        _print_model(target, *_examine_network(target), json)
    else:
        _examine_data(target, json)


def _is_run(path: Path) -> bool:
    return (
        (path / "recipe.toml").is_file() or (path / "model.safetensors").is_file() or path.suffix == ".safetensors"
    )


def _is_network(name: str) -> bool:
    from convlens.models import names

    return name in names() and not Path(name).exists()


def _examine_run(target: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from convlens.modelfile import load
    from convlens.training.diagnosis import structure_findings

    predictor = load(target)
    diagnosis = predictor.card.diagnosis
    structure = structure_findings(predictor.model, predictor.preprocessing.shape)
    findings = [*diagnosis.get("findings", []), *(finding.model_dump() for finding in structure)]
    return findings, diagnosis.get("layers", [])


def _examine_network(target: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    import torch

    from convlens.models import create
    from convlens.training.diagnosis import squeeze_findings, structure_findings

    with torch.device("meta"):  # shapes suffice
        network = create(target)
    shape = (network.config["in_channels"], *network.config["input_size"])
    findings = squeeze_findings(network, shape, network.config["num_classes"]) + structure_findings(network, shape)
    return [finding.model_dump() for finding in findings], []


def _print_model(target: str, findings: list[dict[str, Any]], layers: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"target": target, "findings": findings, "layers": layers})
        return
    out = result_console()
    if not findings:
        out.print("Nothing found.")
    for finding in findings:
        out.print(f"[{_MARKS[finding['severity']]}]{finding['severity']}[/]: {finding['text']}", soft_wrap=True)
        if finding["fix"]:
            out.print(f"  Fix: {finding['fix']}.", markup=False, soft_wrap=True)
    for layer in layers:
        dead = "" if layer["dead_part"] is None else f"   dead units {100 * layer['dead_part']:.0f} %"
        norms = f"|weights| {layer['weight_norm']:8.3g}   |gradient| {layer['gradient_norm']:8.3g}"
        out.print(f"  {layer['layer']:<24} {norms}{dead}", markup=False, soft_wrap=True)


def _examine_data(source: str, as_json: bool) -> None:
    from convlens.cli.data import open_for_looking
    from convlens.data.doctor import examine

    dataset = open_for_looking(source, None, None, "skip")
    findings = examine(dataset)
    if as_json:
        print_json({"data": dataset.source, "findings": [finding.model_dump() for finding in findings]})
        return
    out = result_console()
    out.print(repr(dataset), markup=False, soft_wrap=True)
    if not findings:
        out.print("Nothing found.")
    for finding in findings:
        _print_data_finding(finding)


def _print_data_finding(finding: DataFinding) -> None:
    out = result_console()
    out.print(f"[{_MARKS[finding.severity]}]{finding.severity}[/]: {finding.what}", soft_wrap=True)
    out.print(f"  {finding.detail}", markup=False, soft_wrap=True)
    for item in finding.items:
        out.print(f"    {item}", markup=False, soft_wrap=True)
    if finding.count > len(finding.items) > 0:
        out.print(f"    … {finding.count - len(finding.items)} more", markup=False)
    out.print(f"  Fix: {finding.fix}.", markup=False, soft_wrap=True)
