"""`fewstep bench` and `fewstep report`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import configs
from ..eval import report as reports
from ..eval.bench import BenchConfig, Run, check_plan, panels, plan, plural, prepare, run_bench
from ..eval.evaluate import is_statistics
from ..eval.models import configured, pick_device
from ..eval.processes import launched
from ..eval.progress import silent
from ..eval.settings import ModelConfig
from ..storage import write_atomically
from . import console
from .app import app
from .console import (
    INTERRUPTED,
    NUMERIC,
    Device,
    fits,
    key_values,
    listed,
    print_lines,
    print_table,
    progress_bar,
)


@app.command()
def bench(
    config: Annotated[
        str, typer.Argument(help=f"{', '.join(configs.names('bench'))}, or a YAML file.")
    ] = "mnist",
    images: Annotated[int | None, typer.Option(help="Images per cell.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per network call.")] = None,
    solvers: Annotated[str | None, typer.Option(help="Such as ddim,unipc-3.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Such as 3,5,10.")] = None,
    spacings: Annotated[str | None, typer.Option(help="Such as uniform,karras,runs/gits.")] = None,
    model: Annotated[
        str | None, typer.Option(help="As in `fewstep generate`; its data stay as they are.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Real images, or statistics of them; see `fewstep stats`.")
    ] = None,
    guidance: Annotated[str | None, typer.Option(help="Scales, such as 1,2.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Such as frechet,kernel,neighbours,score.")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="First seeds, one for each repeat.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value for any other setting, repeatable: reference=null"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run.")] = False,
    device: Device = "auto",
    folder: Annotated[Path, typer.Option("--out", help="Where runs go.")] = Path("runs"),
) -> None:
    """Compare solvers by quality against NFE.

    Every solver runs at every NFE on the same seeds. Each cell gets the RMSE to converged samples,
    the distances of the config to the real data, and the seconds per image. OUT/NAME gets
    report.html, report.md, results.csv, results.json, plots and sample grids.

    Ctrl-C keeps what is done, and the same command goes on from there. Options override the config.
    `accelerate launch --num_processes 8 -m fewstep.cli bench CONFIG` shares the work over GPUs.
    """
    path = configs.find("bench", config)
    given: dict[str, Any] = {
        "images": images,
        "batch_size": batch_size,
        "solvers": listed(solvers),
        "nfe": listed(nfe),
        "spacings": listed(spacings),
        "guidance": listed(guidance),
        "metrics": listed(metrics),
        "seeds": listed(seed),
        "name": name,
    }
    values = plural(configs.read(path)) | plural(key_values("--set", change))
    values |= {key: value for key, value in given.items() if value is not None}
    if model is not None or data is not None:
        values = with_model(values, model, data)
    settings = configs.checked(BenchConfig, values, str(path))
    where = pick_device(device)
    if dry_run:
        print_plan(settings, folder / settings.name)
        return
    processes = launched(where)
    target = folder / settings.name
    # One bar for all: every process does its share of every cell.
    bar = progress_bar(f"bench {settings.name}") if processes.first else nullcontext(silent)
    with bar as progress:

        def ready(asked: ModelConfig) -> Any:
            return prepare(settings, asked, where, target, progress, processes)

        run = run_bench(settings, target, ready, progress, processes)
    if processes.first:
        print_run(run)
    if run.interrupted:
        console.err.print(f"interrupted with {left(run)} to go; the same command goes on")
        raise typer.Exit(INTERRUPTED)
    lost = [result.cell.slug for result in run.results if result.record["not_finite"]]
    if lost:
        console.err.print(f"samples that are not finite in {', '.join(lost)}: see the report")
        raise typer.Exit(NUMERIC)


def left(run: Run) -> str:
    """What an interrupted run did not come to."""
    cells = [f"{len(run.missing)} cells"] if run.missing else []
    return " and ".join([*cells, *(f"all cells of {name}" for name in run.unseen)])


def with_model(values: dict[str, Any], name: str | None, data: str | None) -> dict[str, Any]:
    """The settings with another id, or other real images, for the first model."""
    models = values.get("models", ["mnist"])
    models = models if isinstance(models, list) else [models]
    first = models[0]
    changed = {"id": first, "data": first} if first == "mnist" else {"id": first}
    changed = dict(first) if isinstance(first, dict) else changed
    if name is not None:
        changed["id"] = name
    if data is not None:
        changed = {k: v for k, v in changed.items() if k not in ("data", "statistics")}
        changed |= {"statistics": data} if is_statistics(Path(data)) else {"data": data}
    return values | {"models": [changed, *models[1:]]}


def print_plan(settings: BenchConfig, target: Path) -> None:
    """What would run: models are loaded and asked what they can do, and nothing else is."""
    total = 0
    for asked in settings.models:
        model = configured(asked)
        check_plan(settings, asked.name, model)
        for panel in (each for each in panels(settings) if each.model == asked.name):
            cells = plan(settings, model.schedule, panel, settings.seeds[0])
            doubled = 1 if panel.guidance == 1 else 2
            calls = [cell.table.nfe * doubled * settings.images for cell in cells]
            rows = [
                [c.curve, c.spacing, f"{c.table.nfe}", f"{n:,}"]
                for c, n in zip(cells, calls, strict=True)
            ]
            head = ["solver", "spacing", "NFE", "evaluations x images"]
            print_table(panel.title or panel.model, head, rows)
            total += sum(calls) * len(settings.seeds)
    extractors = ", ".join(each.id for each in settings.extractors) or "none"
    reference = settings.reference
    rows = [
        ["images", f"{settings.images} per cell and seed"],
        ["first seeds", ", ".join(map(str, settings.seeds))],
        ["metrics", f"{', '.join(settings.metrics) or 'none'}, in the features of {extractors}"],
        ["reference", "none" if reference is None else f"{reference.solver}, {reference.steps}"],
        ["in all", f"{total:,} evaluations x images, the reference not counted"],
        ["folder", str(target)],
    ]
    print_lines("All of this", rows)


def print_run(run: Run) -> None:
    """Write the report, and print its tables."""
    page = reports.write_report(run)
    records = [result.record for result in run.results]
    print_records(records)
    console.out.print(f"report: {page}", highlight=False, soft_wrap=True)


def print_records(records: list[Any]) -> None:
    """The tables of every panel."""
    if not records:
        return
    found = reports.quantities(records)
    for title, part in reports.panels_of(records).items():
        for quantity in found:
            place = f" ({title})" if title else ""
            tables = [reports.by_nfe(part, quantity, errors) for errors in (True, False)]
            # A narrow terminal has no room for errors; the report has them.
            table = next((each for each in tables if fits(each.head, each.rows)), tables[-1])
            print_table(f"{quantity.title}{place}", table.head, table.rows)
    if len({record["seed"] for record in records}) > 1:
        console.out.print("\nmeans over the first seeds; min is the least of them")


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of one or two runs of `fewstep bench`.")
    ],
    file: Annotated[Path | None, typer.Option("--out", help="Also write it: .md or .html.")] = None,
) -> None:
    """Print the tables of a run, or compare two: what differs, and is it more than chance.

    Two runs are compared cell by cell. Where both used the same seeds the error of a difference is
    that of paired samples, and differences beyond two standard errors stand out.
    """
    if len(runs) > 2:
        raise ValueError(f"report compares two runs, not {len(runs)}")
    loaded = [reports.load_results(each) for each in runs]
    if len(loaded) == 1:
        print_records(loaded[0]["cells"])
        sections = []
    else:
        tables = reports.compare(*loaded)
        for title, table in tables:
            print_table(title, *marked(table))
        sections = [reports.Section(title, (table,)) for title, table in tables]
    if file is None:
        return
    if not sections:
        raise ValueError("--out is for comparisons; the report of one run is in its folder")
    title = f"A: {runs[0]}, B: {runs[1]}"
    if file.suffix not in (".md", ".html"):
        raise ValueError(f"--out wants a name in .md or .html, not {file}")
    text = (
        reports.markdown(title, sections)
        if file.suffix == ".md"
        else reports.page(title, sections, file.parent)
    )
    write_atomically(file, text)
    console.out.print(f"written: {file}", highlight=False)


def marked(table: reports.Table) -> tuple[list[str], list[list[str]]]:
    """A table with an asterisk at what stands out."""
    rows = [
        [text + (" *" if (i, j) in table.bold else "") for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    return table.head, rows
