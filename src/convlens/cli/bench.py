"""Measure speed against PyTorch and other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure speed against PyTorch and other engines, side by side in one process."""


@app.command()
def layers(
    names: Annotated[list[str] | None, typer.Argument(help="Layers to measure; all 42 by default.")] = None,
    direction: Annotated[
        str, typer.Option(help="forward, backward (both gradients), or both.", metavar="DIRECTION")
    ] = "both",
    repeats: Annotated[int, typer.Option(min=3, help="Rounds at most.")] = 30,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds of rounds for each row at most.")] = 3.0,
    compile: Annotated[bool, typer.Option(help="Also measure torch.compile (some seconds a layer).")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.json and layers.svg.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time each layer of the set against the best form of torch (and onnxruntime, openvino if installed)."""
    ways = {"both": ("forward", "backward"), "forward": ("forward",), "backward": ("backward",)}
    if direction not in ways:
        raise typer.BadParameter(f"expected forward, backward or both, received {direction!r}")
    import torch

    from convlens.bench import results
    from convlens.bench.cases import layer_cases
    from convlens.bench.layers import measure_layers

    if threads is not None:
        torch.set_num_threads(threads)
    rows = []
    status = status_console()
    for row in measure_layers(
        layer_cases(names or ()), ways[direction], repeats=repeats, budget_s=budget, compiled=compile
    ):
        rows.append(row)
        status.print(f"{row.name} {row.direction}: {row.ratio[1]:.2f}× the best peer ({row.planned})")
    if out is not None:
        for path in results.write(rows, out):
            status.print(f"wrote {path}")
    if as_json:
        print_json(results.document(rows))
    else:
        result_console().print(results.table(rows))


@app.command()
def nets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Networks of convlens, timm/NAME, or module:function of yours (with @3,128,128 for other inputs "
            "than 3,224,224); a set of ours and timm's by default."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size, may be repeated; 1 and 32 by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Rounds at most.")] = 15,
    budget: Annotated[float, typer.Option(min=0.0, help="Seconds of rounds for each row at most.")] = 4.0,
    compile: Annotated[
        bool, typer.Option(help="torch.compile too, where there is a C++ compiler (up to a minute a network).")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for nets.json and nets.svg.")] = None,
    append: Annotated[
        bool, typer.Option(help="Keep what nets.json in --out has of other networks and batch sizes.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Time whole networks, forward, against torch in its best form, onnxruntime and openvino."""
    import torch

    from convlens.bench import results
    from convlens.bench.net_cases import net_cases
    from convlens.bench.nets import measure_nets

    if threads is not None:
        torch.set_num_threads(threads)
    status = status_console()
    rows = results.read_nets(out) if append and out is not None else []
    cases = net_cases(names or ())
    for row in measure_nets(
        cases, batch or (1, 32), repeats=repeats, budget_s=budget, compiled=compile,
        skipped=lambda name, why: status.print(f"{name} left out: {why}"),
    ):  # fmt: skip
        rows = [old for old in rows if (old.name, old.batch) != (row.name, row.batch)] + [row]
        shown = ", ".join(f"{middle:.2f}× {name}" for name, (_, middle, _) in row.ratios.items())
        status.print(f"{row.name} batch {row.batch}: {row.ours_us.median_us / 1e3:.3g} ms, {shown}")
        if out is not None:  # after every row, so that an interruption loses none
            results.write_nets(rows, out)
    if as_json:
        print_json(results.net_document(rows))
    else:
        result_console().print(results.net_table(rows))


@app.command()
def train(
    mnist: Annotated[
        Path | None, typer.Option(help="Folder of MNIST's IDX files; random pictures of that size by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of each way that count.")] = 5,
    usual_rounds: Annotated[
        int, typer.Option(min=0, help="The same for DataLoader loops; 0 leaves them out.")
    ] = 1,
    samples: Annotated[int, typer.Option(min=256, help="Random pictures to train on.")] = 60_000,
    compile: Annotated[bool, typer.Option(help="Also measure torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own number by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for train.json and train.svg.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time an epoch of LeNet-5, data handling included, against PyTorch loops from tuned to usual."""
    import tempfile

    import torch

    from convlens.bench import train as bench_train

    if threads is not None:
        torch.set_num_threads(threads)
    status = status_console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = mnist or bench_train.write_random_digits(Path(scratch), samples)
        rows = bench_train.measure_training(
            folder, rounds=rounds, usual_rounds=usual_rounds, compiled=compile,
            done=lambda name, number, seconds: status.print(f"round {number} {name}: {seconds:.2f} s"),
        )  # fmt: skip
    count = round(rows[0].samples_per_s * rows[0].seconds.median_us / 1e6)
    if out is not None:
        for path in bench_train.write(rows, count, out):
            status.print(f"wrote {path}")
    if as_json:
        print_json(bench_train.document(rows, count))
    else:
        result_console().print(bench_train.table(rows))


@app.command()
def serve(
    names: Annotated[list[str] | None, typer.Argument(help="lenet5, resnet18; both by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each server.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of load in a round.")] = 3.0,
    warm: Annotated[float, typer.Option(min=0.1, help="Seconds of load before the rounds.")] = 1.0,
    connections: Annotated[int, typer.Option(min=1, help="Connections that ask at the same time.")] = 64,
    out: Annotated[Path | None, typer.Option(help="Folder for serving.json.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Load our server, a plain FastAPI endpoint and LitServe (if installed) with single pictures."""
    import json

    from convlens.bench.serving import servers

    for name in names or ():
        if name not in servers.NETS:
            raise typer.BadParameter(f"expected one of {', '.join(servers.NETS)}, received {name!r}")
    status = status_console()
    found = {
        name: servers.measure_serving(
            name, rounds=rounds, seconds=seconds, warm_s=warm, connections=connections,
            done=lambda server, rate: status.print(f"{server}: {rate:,.0f} requests/s"),
        )
        for name in names or servers.NETS
    }  # fmt: skip
    document = servers.document(found, connections)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "serving.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        status.print(f"wrote {out / 'serving.json'}")
    if as_json:
        print_json(document)
    else:
        result_console().print(servers.table(found))
