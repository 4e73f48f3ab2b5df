"""The command `ciss watch`. Imports nothing heavy before it is called."""

from typing import Annotated

from typer import Option

from ciss import arguments

PORT = "Port of the page. Default: one that is free."
Port = Annotated[int, Option(metavar="N", min=0, max=65535, help=PORT, show_default=False)]


def watch(config: arguments.Config = "params.yaml", port: Port = 0) -> None:
    """Show runs, curves and the time left on a page that redraws itself.

    \b
    ciss watch              # prints the address of the page; Ctrl-C ends it
    ciss watch --port 8000

    Only this machine can open the page. It reads the files of the runs in params.yaml and changes nothing. You can
    start it before, during or after the training.
    """
    from ciss.study.watch import server

    server.main(config, port)
