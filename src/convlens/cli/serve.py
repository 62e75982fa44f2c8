"""Answer predictions over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from convlens.cli._output import status_console

__all__ = ["run"]


def run(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs or model files, or NAME=RUN.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="File whose first line is the bearer token.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Answer other machines without a token.")] = False,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures computed together at most.")] = 32,
    wait_ms: Annotated[float, typer.Option(help="Longest wait for company while idle.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Pictures waiting at most; beyond that 429.")] = 256,
    budget: Annotated[
        float, typer.Option(help="Longest wait in seconds that a request may expect; else 429.")
    ] = 2.0,
    threads: Annotated[
        int, typer.Option(help="Processor threads of one batch: more answers a lone request sooner.")
    ] = 1,
    workers: Annotated[int, typer.Option(help="Batches computed at once; 0: by the number of cores.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up (503).")] = 10.0,
    max_body: Annotated[int, typer.Option(help="Largest request in bytes.")] = 16 << 20,
    max_pixels: Annotated[int, typer.Option(help="Largest picture in pixels.")] = 50_000_000,
    watch: Annotated[float, typer.Option(help="Seconds between looks for a newer model file; 0 never.")] = 2.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line for each request.")] = False,
) -> None:
    """Serve RUN on /v1/predict; SIGTERM and Ctrl-C answer what is in flight and end with 0.

    Pictures come as the body, as files of a form, or base64 in JSON. A newer model file is taken while serving.
    """
    from pydantic import ValidationError

    from convlens.environment import serve_token
    from convlens.errors import MissingExtraError, RecipeError

    try:
        from convlens.serving.running import serve
    except ImportError as error:
        raise MissingExtraError(str(error.name), "serve", "convlens serve") from error
    from convlens.serving.served import ServedModel
    from convlens.serving.settings import ServeSettings

    try:
        settings = ServeSettings(
            host=host,
            port=port,
            token=_token(token_file) or serve_token(),
            insecure=insecure,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            batch=batch,
            wait_ms=wait_ms,
            queue=queue,
            budget_s=budget,
            threads=threads,
            workers=workers,
            timeout_s=timeout,
            body_bytes=max_body,
            pixels=max_pixels,
            watch_s=watch,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecipeError(
            f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}."
        ) from None
    import torch

    torch.set_num_threads(settings.threads)
    models: dict[str, Any] = {}
    for text in runs:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = Path(text).resolve().name.removesuffix(".safetensors"), text
        if name in models:
            raise RecipeError(f"two models are called {name!r}: name them, e.g. new={path}.")
        models[name] = ServedModel(name, Path(path), settings.batch)
    console = status_console()
    serve(
        models,
        settings,
        lambda address: console.print(f"Serving {', '.join(models)} on {address}", soft_wrap=True, markup=False),
        quiet=quiet,
    )


def _token(path: Path | None) -> str | None:
    from convlens.errors import PathError

    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip().splitlines()[0]
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise PathError(f"{path}: expected a file whose first line is the token ({error}).") from None
