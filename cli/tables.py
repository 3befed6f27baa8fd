"""`fewstep show` and `fewstep solvers`: the tables themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .. import samplers, schedules
from ..eval.report import save_figure
from ..samplers import picture
from ..samplers.family import load_blends, within
from . import console
from .app import app
from .console import Nfe, print_table

SCHEDULES: dict[str, schedules.Schedule] = {
    "discrete": schedules.VPDiscrete(schedules.betas()),
    "vp": schedules.VPLinear(),
    "cosine": schedules.VPCosine(),
    "edm": schedules.EDM(),
    "flow": schedules.FlowMatching(),
}


@app.command()
def show(
    solver: Annotated[str, typer.Argument(help="See `fewstep solvers`; or a .json of tables.")],
    nfe: Nfe = 8,
    schedule: Annotated[str, typer.Option(help=", ".join(SCHEDULES))] = "discrete",
    spacing: Annotated[
        str | None,
        typer.Option(help="As in `sample`; lam, or uniform where a law starts at pure noise."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Scale, for tables that depend on it.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="Also draw the triangle: a PNG.")
    ] = None,
) -> None:
    """Print a solver's table: what each step adds up, and the order it has.

    Row n reads x[n+1] = carry x[n] + the weights of the newest outputs m[n], m[n-1], .. The order
    of a row is the number of moment conditions that it satisfies by itself; the rows of a corrector
    also mend the step before, and show less.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    law = SCHEDULES[schedule]
    rule = spacing or ("lam" if law.lam(law.t_max) > -float("inf") else "uniform")
    if samplers.is_family(solver):
        table = within(samplers.load_family(solver, guidance), nfe)
    else:
        table = samplers.build_within(solver, nfe, lambda steps: schedules.grid(law, steps, rule))
    rows = tableau_rows(table)
    title = f"{table.name}: NFE {table.nfe}, outputs as {table.basis}"
    print_table(title, *rows)
    if file is not None:
        save_figure(picture.heatmap(table), file)
        console.out.print(f"picture: {file}", highlight=False)


def tableau_rows(table: samplers.Tableau) -> tuple[list[str], list[list[str]]]:
    """A table as text, weights and noise by age: the newest output first."""
    n = table.grid.nfe
    blocks = [("m", table.weights), ("z", table.noise)]
    ages = {
        name: 1 + max((i - k for i, k in zip(*block.nonzero(), strict=True)), default=-1)
        for name, block in blocks
    }
    head = ["n", "time", "lam", "order", "carry"]
    if table.bias.any():
        head.append("bias")
    head += [
        f"{name}[n-{age}]" if age else f"{name}[n]"
        for name, _ in blocks
        for age in range(ages[name])
    ]
    rows = []
    for i, order in enumerate(table.row_orders()):
        row = [str(i), f"{table.grid.time[i]:.4g}", f"{table.grid.lam[i]:.3f}", str(order)]
        row.append(f"{table.carry[i]:.4f}")
        if table.bias.any():
            # Of an image, the mean.
            row.append(f"{table.bias[i].mean():.4f}")
        for name, block in blocks:
            row += [
                f"{block[i, i - age]:.4f}" if age <= i and block[i, i - age] else ""
                for age in range(ages[name])
            ]
        rows.append(row)
    end = ["", f"{table.grid.time[n]:.4g}", f"{table.grid.lam[n]:.3f}"]
    return head, [*rows, end + [""] * (len(head) - len(end))]


@app.command()
def solvers() -> None:
    """List the solvers by name."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("name", "order", "calls a step", "what it is, and its other names"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    grid = schedules.grid(SCHEDULES["discrete"], 12, end="min")
    for each in samplers.solvers():
        calls = f"{each(grid).nfe / grid.nfe:.2g}"
        # One a line, as a narrow terminal would break long ones.
        about = "\n".join([each.description, *(f"[dim]{name}[/]" for name in each.aliases)])
        table.add_row(each.name, str(each.order), calls, about)
    for name in samplers.families():
        numbers = ", ".join(map(str, load_blends(name)))
        table.add_row(name, "", "1", f"tables learned for one model, of NFE {numbers}")
    console.out.print(table)
