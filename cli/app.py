"""The command itself; each file beside this one adds some subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from ..storage import version_of
from . import console
from .console import ForPeople

app = typer.Typer(
    cls=ForPeople,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Few-step sampling for diffusion models. Start with `fewstep bench`: it compares "
    "solvers on a bundled model of handwritten digits in a few minutes.",
    epilog="Exit codes: 0 done; 2 a wrong option, config or file; 3 something is missing, or "
    "cannot be read or written (weights, a model, images, the disk); 4 interrupted, the same "
    "command goes on; 5 numbers that are not finite.",
)


def tell(asked: bool) -> None:
    """Print the version, and end."""
    if asked:
        console.out.print(f"fewstep {version_of('fewstep')}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=tell, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What all commands share."""
