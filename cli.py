"""The command `fewstep`: it parses, calls and prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from . import configs, samplers, schedules
from . import eval as evaluation
from .samplers import picture
from .zoo import tasks

out = Console()
err = Console(stderr=True)

SCHEDULES: dict[str, schedules.Schedule] = {
    "discrete": schedules.VPDiscrete(schedules.betas()),
    "vp": schedules.VPLinear(),
    "cosine": schedules.VPCosine(),
    "edm": schedules.EDM(),
    "flow": schedules.FlowMatching(),
}


class ForPeople(TyperGroup):
    """Errors in what was asked are one line and exit code 2; Ctrl-C is exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (ValueError, FileNotFoundError) as error:
            err.print(f"[red]fewstep {ctx.invoked_subcommand}:[/] {error}", highlight=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err.print("interrupted; the same command goes on from what is saved")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=ForPeople,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Few-step sampling for diffusion models. Start with `fewstep bench`: it compares "
    "solvers on a bundled model of handwritten digits in about five minutes.",
)

Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ..; auto takes an accelerator if any.")
]
Spacing = Annotated[
    str, typer.Option(help=f"How the nodes are placed: {', '.join(schedules.SPACINGS)}, ..")
]
Nfe = Annotated[int, typer.Option(min=1, help="Network evaluations per image.")]


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Give a function (done, total, text) that draws a bar with the time left, on stderr."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def listed(text: str | None) -> list[str] | None:
    """The items of a comma-separated option."""
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


@app.command()
def bench(
    config: Annotated[
        str, typer.Argument(help="A name in configs/bench, or a YAML file.")
    ] = "mnist",
    images: Annotated[int | None, typer.Option(help="Images per cell.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per network call.")] = None,
    solvers: Annotated[str | None, typer.Option(help="Such as ddim,unipc-3.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Such as 3,5,10.")] = None,
    spacings: Annotated[str | None, typer.Option(help="Such as uniform,karras.")] = None,
    model: Annotated[
        str | None, typer.Option(help="mnist, or the folder of a digit model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The first of the seeds.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Where runs go.")] = Path("runs"),
) -> None:
    """Compare solvers by quality against NFE on one model.

    Every solver runs at every NFE on the same seeds. Each cell gets the RMSE to converged samples,
    the Frechet distance to the real data in a classifier's features, and the seconds per image.
    OUT/NAME gets report.html, report.md, results.csv, results.json, plots and sample grids.

    Ctrl-C keeps what is done, and the same command goes on from there. Options override the config.
    """
    path = configs.find("bench", config)
    given = {
        "images": images,
        "batch_size": batch_size,
        "solvers": listed(solvers),
        "nfe": listed(nfe),
        "spacings": listed(spacings),
        "model": model,
        "seed": seed,
        "name": name,
    }
    values = configs.read(path) | {key: value for key, value in given.items() if value is not None}
    settings = configs.checked(evaluation.BenchConfig, values, str(path))
    subject = evaluation.load_subject(settings.model, evaluation.pick_device(device))
    with progress_bar(f"bench {settings.name}") as progress:
        run = evaluation.run_bench(settings, subject, folder / settings.name, progress)
    page = evaluation.write_report(run)
    for quantity in ("frechet", "rmse", "seconds_per_image"):
        head, rows = evaluation.matrix(run, quantity)
        print_matrix(evaluation.title(run, quantity), head, rows)
    out.print(f"report: {page}", highlight=False, soft_wrap=True)
    if run.missing:
        err.print(f"interrupted with {len(run.missing)} cells to go; the same command goes on")
        raise typer.Exit(130)


def print_matrix(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table: names on the left, numbers right-aligned."""
    out.print(f"\n[bold]{escape(title)}[/]", highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for i, column in enumerate(head):
        table.add_column(escape(column), justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)


@app.command()
def sample(
    solver: Annotated[str, typer.Option(help="See `fewstep solvers`.")] = "unipc-3",
    nfe: Nfe = 10,
    spacing: Spacing = "uniform",
    label: Annotated[
        list[int] | None, typer.Option(help="Repeatable; default: all, in turn.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    guidance: Annotated[float, typer.Option(help="Scale; 1 is off, more doubles the calls.")] = 1.0,
    model: Annotated[str, typer.Option(help="mnist, or the folder of a digit model.")] = "mnist",
    device: Device = "auto",
    file: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("samples.png"),
) -> None:
    """Draw images from the bundled digit model into one PNG.

    Example: fewstep sample --solver dpmpp-2m --nfe 8 --label 3 --label 7 --guidance 2
    """
    subject = evaluation.load_subject(model, evaluation.pick_device(device))
    table = samplers.build_within(
        solver, nfe, lambda steps: schedules.grid(subject.schedule, steps, spacing)
    )
    wanted = label or list(range(subject.classes))
    bad = [each for each in wanted if not 0 <= each < subject.classes]
    if bad:
        raise ValueError(f"label {bad[0]} is not one of 0 to {subject.classes - 1}")
    labels = torch.tensor([wanted[i % len(wanted)] for i in range(count)])
    draw = evaluation.Draw(range(seed, seed + count), labels, guidance=guidance)
    with progress_bar(f"{table.name}, NFE {table.nfe}") as progress:
        counter = evaluation.Counter(table.nfe * count, progress)
        pixels = evaluation.quantise(evaluation.generate(subject, table, draw, counter.add))
    evaluation.save_grid(pixels, file)
    out.print(f"{count} images by {table.name}, NFE {table.nfe}: {file}", highlight=False)


@app.command()
def show(
    solver: Annotated[str, typer.Argument(help="See `fewstep solvers`.")],
    nfe: Nfe = 8,
    schedule: Annotated[str, typer.Option(help=", ".join(SCHEDULES))] = "discrete",
    spacing: Annotated[
        str | None,
        typer.Option(help="As in `sample`; lam, or uniform where a law starts at pure noise."),
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
    table = samplers.build_within(solver, nfe, lambda steps: schedules.grid(law, steps, rule))
    rows = tableau_rows(table)
    title = f"{table.name}: NFE {table.nfe}, outputs as {table.basis}"
    print_matrix(title, *rows)
    if file is not None:
        evaluation.save_figure(picture.heatmap(table), file)
        out.print(f"picture: {file}", highlight=False)


def tableau_rows(table: samplers.Tableau) -> tuple[list[str], list[list[str]]]:
    """A table as text, weights and noise by age: the newest output first."""
    n = table.grid.nfe
    blocks = [("m", table.weights), ("z", table.noise)]
    ages = {
        name: 1 + max((i - k for i, k in zip(*block.nonzero(), strict=True)), default=-1)
        for name, block in blocks
    }
    head = ["n", "time", "lam", "order", "carry"]
    head += [
        f"{name}[n-{age}]" if age else f"{name}[n]"
        for name, _ in blocks
        for age in range(ages[name])
    ]
    rows = []
    for i, order in enumerate(table.row_orders()):
        row = [str(i), f"{table.grid.time[i]:.4g}", f"{table.grid.lam[i]:.3f}", str(order)]
        row.append(f"{table.carry[i]:.4f}")
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
    for column in ("name", "order", "calls a step", "what it is", "also known as"):
        table.add_column(column, overflow="fold")
    grid = schedules.grid(SCHEDULES["discrete"], 12, end="min")
    for each in samplers.solvers():
        calls = f"{each(grid).nfe / grid.nfe:.2g}"
        names = ", ".join(each.aliases)
        table.add_row(each.name, str(each.order), calls, each.description, names)
    out.print(table)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A name in configs/train, or a YAML file.")],
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, repeatable: override the config.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where it goes; default runs/train-CONFIG.")
    ] = None,
) -> None:
    """Train a bundled model again: `mnist` (the denoiser) or `mnist-classifier`.

    Checkpoints are kept in OUT, and the same command resumes. Devices and processes are those of
    accelerate: `accelerate launch --num_processes 4 -m fewstep.cli train mnist` uses four GPUs.
    """
    pairs = [text.partition("=") for text in change or []]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"--set wants key=value, not {key!r}")
    overrides = {key: yaml.safe_load(value) for key, _, value in pairs}
    target = folder or Path("runs") / f"train-{Path(config).stem}"
    with progress_bar(f"train {Path(config).stem}") as progress:
        result = tasks.train(config, target, overrides, progress)
    out.print(f"trained: {result}", highlight=False)


@app.command()
def card(
    model: Annotated[str, typer.Option(help="mnist, or the folder of a digit model.")] = "mnist",
    images: Annotated[int, typer.Option(min=100, help="Images for the Frechet distance.")] = 5000,
    judged: Annotated[int, typer.Option(min=100, help="Images that the judge reads.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Where README.md goes.")] = Path(
        "runs/card"
    ),
) -> None:
    """Measure a digit model and write its model card.

    A judge of another architecture, trained here, reads class-conditional samples of 100-step DDIM;
    the Frechet distance and the share of speckled images are compared with those of the real data.
    About ten minutes on 2 CPU cores.
    """
    subject = evaluation.load_subject(model, evaluation.pick_device(device))
    with progress_bar("card") as progress:
        facts = evaluation.measure_model(subject, images, judged, seed, progress)
    path = evaluation.write_card(facts, folder)
    out.print(path.read_text(encoding="utf-8"), markup=False, highlight=False)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
