"""Open a net in the browser: layers, maps, single numbers, and the lectures' examples by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from convlens.cli._output import status_console

__all__ = ["run"]


def run(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run, a model file, or module:function that returns a torch.nn.Module (your code, run here). "
            "Without it: the lectures' examples.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option(help="For module:function: channels and sizes, e.g. 3,224,224.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """Serve the explorer on this machine only, and open it in the browser. Ctrl-C ends it."""
    import socket

    from convlens.errors import DeviceError, MissingExtraError

    try:
        import uvicorn

        from convlens.explorer.server import create_app, new_token
    except ImportError as error:
        raise MissingExtraError(str(error.name), "explore", "convlens explore") from error
    from convlens.explorer.session import Session
    from convlens.explorer.subject import open_subject

    shape = _shape(input_shape)
    session = Session(open_subject(source, shape)) if source else None
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise DeviceError(
            f"Port {port} cannot be used ({error.strerror}). Choose another --port, or 0."
        ) from error
    # from here on a browser waits for the answer instead of being refused
    listener.listen(128)
    port = listener.getsockname()[1]
    token = new_token()
    app = create_app(session, token, {f"127.0.0.1:{port}", f"localhost:{port}"})
    address = f"http://127.0.0.1:{port}/?token={token}{'' if session else '#play'}"
    status_console().print(f"Explorer: {address}\nCtrl-C ends it.", soft_wrap=True, markup=False)
    if browser:
        import threading
        import webbrowser

        threading.Timer(0.5, webbrowser.open, [address]).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--input-shape: expected e.g. 3,224,224, received {text!r}") from None
