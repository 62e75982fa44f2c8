"""Show which kernel computes a convolution, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convlens.cli._output import JsonFlag, print_json, result_console, status_console

if TYPE_CHECKING:
    from rich.table import Table

    from convlens.planner import Plan
    from convlens.window import ConvProblem

__all__ = ["run"]


def run(
    input: Annotated[str, typer.Option(help="Input shape N,C,L[,L[,L]], e.g. 8,100,64,64.", metavar="SHAPE")] = "",
    weight: Annotated[str, typer.Option(help="Weight shape O,C/G,K[,K[,K]].", metavar="SHAPE")] = "",
    stride: Annotated[str, typer.Option(help="One number, or one an axis: 2 or 2,1.")] = "1",
    padding: Annotated[str, typer.Option(help="One number, or one an axis.")] = "0",
    dilation: Annotated[str, typer.Option(help="One number, or one an axis.")] = "1",
    groups: Annotated[int, typer.Option(min=1)] = 1,
    direction: Annotated[str, typer.Option(help="forward, input_grad, weight_grad or all.")] = "all",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="For channels_last tensors.")] = False,
    algorithm: Annotated[str, typer.Option(help="A named algorithm instead of the planner's choice.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="exact, high or fast: the error class allowed.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget every remembered measurement first.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the plans made here to a file.")] = None,
    pin: Annotated[Path | None, typer.Option(help="Use the plans of such a file.")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also what was compiled: seconds for each kernel and in total.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show the candidates for one convolution: time, % of attainable, error, refusal, and why one won.

    The first look at a problem measures the best few candidates and remembers the figures.
    """
    from convlens import planner

    if clear:
        status_console().print(f"forgot {planner.default_store().clear()} measurements")
        if not input and not weight:
            return
    if not input or not weight:
        raise typer.BadParameter("expected --input and --weight, e.g. --input 8,100,64,64 --weight 100,100,5,5")
    if precision is not None:
        planner.set_precision(precision)  # type: ignore[arg-type]
    if pin is not None:
        planner.load_plans(pin)
    problem = _problem(input, weight, stride, padding, dilation, groups, channels_last)
    known = ("forward", "input_grad", "weight_grad")
    if direction not in (*known, "all"):
        raise typer.BadParameter(f"expected {', '.join(known)} or all, received {direction!r}")
    wanted = known if direction == "all" else (direction,)
    plans = [planner.plan(problem.towards(way), algorithm) for way in wanted]  # type: ignore[arg-type]
    if export is not None:
        planner.save_plans(export)
        status_console().print(f"wrote {export}")
    if as_json:
        document: object = [_record(plan) for plan in plans]
        print_json({"plans": document, "compiled": _compiled_records()} if verbose else document)
        return
    console = result_console()
    for plan in plans:
        console.print(_table(plan))
        console.print(f"→ [b]{plan.kernel}[/b]: {plan.reason}\n")
    if verbose:
        console.print(_compiled_table())


def _compiled_records() -> list[dict[str, object]]:
    from dataclasses import asdict

    from convlens.kernels.cpu.codegen import compile_log

    return [asdict(record) for record in compile_log()]


def _compiled_table() -> Table:
    from rich.table import Table

    from convlens.kernels.cpu.codegen import compile_log

    records = compile_log()
    shown = Table(title="kernels made ready by this process")
    for column in ("kernel", "from", "parameters"):
        shown.add_column(column, no_wrap=column != "parameters", overflow="ellipsis")
    shown.add_column("seconds", justify="right")
    for record in sorted(records, key=lambda r: -r.compile_s):
        source = "disk" if record.from_disk else "compiled"
        parameters = record.parameters if len(record.parameters) <= 120 else record.parameters[:117] + "..."
        shown.add_row(record.name, source, parameters, f"{record.compile_s:.3f}")
    compiled_s = sum(r.compile_s for r in records if not r.from_disk)
    fresh = sum(not r.from_disk for r in records)
    shown.add_row(f"[b]{len(records)} kernels[/b]", f"{fresh} compiled", "", f"[b]{compiled_s:.3f}[/b]")
    return shown


def _problem(
    input: str, weight: str, stride: str, padding: str, dilation: str, groups: int, channels_last: bool
) -> ConvProblem:
    from convlens.errors import ShapeError
    from convlens.window import ConvProblem

    batch, in_channels, *size = _numbers("--input", input)
    out_channels, per_group, *kernel = _numbers("--weight", weight)
    if len(size) != len(kernel) or not 1 <= len(size) <= 3:
        raise ShapeError("--weight", f"{len(size)} kernel sizes after O,C, as --input has axes", weight)
    if per_group * groups != in_channels or out_channels % groups:
        raise ShapeError(
            "--weight",
            f"{in_channels}/{groups} = {in_channels / groups:g} channels per group and an output count "
            f"divisible by {groups}",
            weight,
        )

    def every_axis(flag: str, text: str) -> tuple[int, ...]:
        given = _numbers(flag, text)
        if len(given) not in (1, len(size)):
            raise ShapeError(flag, f"1 or {len(size)} numbers", text)
        return tuple(given) * len(size) if len(given) == 1 else tuple(given)

    problem = ConvProblem(
        direction="forward",
        batch=batch,
        in_channels=in_channels,
        input_size=tuple(size),
        out_channels=out_channels,
        kernel_size=tuple(kernel),
        stride=every_axis("--stride", stride),
        padding=tuple((pad, pad) for pad in every_axis("--padding", padding)),
        dilation=every_axis("--dilation", dilation),
        groups=groups,
        layout="channels_last" if channels_last and len(size) > 1 else "contiguous",
    )
    if min(problem.output_size) < 1:
        raise ShapeError("--weight", f"a window that fits {tuple(size)} with the padding", f"{tuple(kernel)}")
    return problem


def _numbers(flag: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{flag}: expected whole numbers between commas, received {text!r}") from None
    if min(numbers) < 0 or (flag in ("--input", "--weight") and (len(numbers) < 3 or min(numbers) < 1)):
        raise typer.BadParameter(f"{flag}: expected e.g. 8,100,64,64, received {text!r}")
    return numbers


def _record(plan: Plan) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(plan) | {"gflops": _gflops(plan, plan.chosen.median_us)}


def _gflops(plan: Plan, median_us: float | None) -> float | None:
    return plan.problem.flops / (median_us * 1e3) if median_us else None


def _table(plan: Plan) -> Table:
    from rich.table import Table

    from convlens import planner

    problem = plan.problem
    peak = planner.machine(problem.device).gflops
    shown = Table(title=f"{problem.direction} · {problem.macs:,} multiply-adds · {problem.layout}")
    for column in ("kernel", "algorithm"):
        shown.add_column(column)
    for column in ("time µs", "estimate µs", "GF/s", "% of peak", "error ×"):
        shown.add_column(column, justify="right")
    shown.add_column("not chosen because", overflow="fold")
    for candidate in sorted(plan.candidates, key=lambda c: c.median_us or float("inf")):
        speed = _gflops(plan, candidate.median_us)
        shown.add_row(
            f"[b]{candidate.name}[/b]" if candidate.name == plan.kernel else candidate.name,
            candidate.algorithm,
            "" if candidate.median_us is None else f"{candidate.median_us:,.0f}",
            "" if candidate.estimate_us is None else f"{candidate.estimate_us:,.0f}",
            "" if speed is None else f"{speed:,.0f}",
            "" if speed is None else f"{100 * speed / peak:.0f}",
            "" if candidate.error is None else f"{candidate.error:.1f}",
            candidate.refusal or "",
        )
    return shown
