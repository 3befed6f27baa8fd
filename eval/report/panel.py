"""The sections of a report about one model at one guidance scale."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..bench import PublishedConfig, Run
from ..images import quantise, thumbnails
from ..score import INCEPTION
from .page import Block, Picture, Section
from .plots import BAND, against_nfe, against_seconds, overview, save_figure
from .points import RMSE, Quantity, Record, main_quantity, points
from .tables import agreement, best, by_nfe

PLOTTED = ("frechet/", "kernel/", "spatial/", "cmmd/", "rmse")


def panel_sections(
    run: Run, title: str, records: list[Record], found: list[Quantity]
) -> Iterator[Section]:
    """The sections of a panel's cells; their pictures are written on the way."""
    place = f" ({title})" if title else ""
    main = main_quantity(found)
    if len({record["curve"] for record in records}) > 1:
        yield Section(f"The best at each NFE{place}", (best(records, main),))
    for quantity in found:
        picture = nfe_plot(run, title, records, found, quantity)
        blocks: list[Block] = [] if picture is None else [picture]
        blocks += [by_nfe(records, quantity), *beside_papers(run, records, quantity)]
        yield Section(f"{quantity.title}{place}", tuple(blocks))
    some = points(records, main)
    if some:
        figure = against_seconds(some, main.title, main.lower_is_better, heading(run, title))
        file = picture_file("pareto", title)
        save_figure(figure, run.folder / file)
        caption = (
            f"{main.title} against the time per image{place}; numbers are NFE, bars {BAND} "
            "standard errors"
        )
        yield Section(f"Quality against time{place}", (Picture(file, caption),))
    file = picture_file("samples", title)
    save_figure(overview(sheets(run, {r["slug"] for r in records}, title)), run.folder / file)
    caption = "The same seeds and labels in every cell"
    yield Section(f"The same samples from every solver{place}", (Picture(file, caption),))


def picture_file(what: str, title: str) -> str:
    """The name of a picture of a panel."""
    slug = "".join(c if c.isalnum() else "-" for c in title)
    return f"{what}-{slug}.png" if slug else f"{what}.png"


def heading(run: Run, title: str) -> str:
    """What stands above a plot."""
    return f"{run.config.name}{f' ({title})' if title else ''}, {run.config.images} images"


def nfe_plot(
    run: Run, title: str, records: list[Record], found: list[Quantity], quantity: Quantity
) -> Picture | None:
    """The plot of a quantity against NFE, written; None of those that need none."""
    some = points(records, quantity)
    if not (quantity.key.startswith(PLOTTED) and some):
        return None
    kind = quantity.key.split("/")[0]
    alone = sum(each.key.split("/")[0] == kind for each in found) == 1
    name = kind if alone else quantity.key.replace("/", "-")
    file = picture_file(f"{name}-vs-nfe", title)
    theirs = [each.values for each in papers(run, records[0], quantity)]
    floors = list(lines(run, title, quantity))
    figure = against_nfe(some, quantity.title, floors, theirs, heading(run, title))
    save_figure(figure, run.folder / file)
    return Picture(file, f"{quantity.title} against NFE; bands are {BAND} standard errors")


def beside_papers(run: Run, records: list[Record], quantity: Quantity) -> Iterator[Block]:
    """Our values of a quantity beside published ones, and what of these did not run."""
    curves = {record["curve"] for record in records}
    for each in papers(run, records[0], quantity):
        table = agreement(records, each, quantity.key)
        if table.rows:
            yield [f"Published: {each.source}"]
            yield table
        absent = [curve for curve in each.values if curve not in curves]
        if absent:
            yield [f"{each.source} has {', '.join(absent)}, too, which did not run."]


def papers(run: Run, record: Record, quantity: Quantity) -> list[PublishedConfig]:
    """The published values of a quantity of a panel, of which `record` is a cell."""
    return [
        each for each in run.config.published if is_about(each, record) and matches(each, quantity)
    ]


def is_about(published: PublishedConfig, record: Record) -> bool:
    """Whether published values are of the model and the guidance of a cell."""
    pairs = ((published.model, record["model"]), (published.guidance, record["guidance"]))
    return all(theirs in (None, ours) for theirs, ours in pairs)


def matches(published: PublishedConfig, quantity: Quantity) -> bool:
    """Whether published values are of this quantity; those of FID are of the Inception only."""
    name, _, extractor = quantity.key.partition("/")
    return published.quantity == quantity.key or (
        published.quantity == name and extractor == INCEPTION
    )


def lines(run: Run, title: str, quantity: Quantity) -> Iterator[tuple[str, float]]:
    """The level that no solver can be told below: of the converged samples, or of their check."""
    for (panel, _), target in run.targets.items():
        if panel.title != title:
            continue
        if quantity == RMSE:
            yield "disagreement of two references", target.record["rmse_to_check"]
        elif len(target.samples) == run.config.images:
            value = target.record["values"].get(quantity.key, {}).get("value")
            if value is not None:
                yield "converged samples", value
        return


def sheets(run: Run, names: set[str], title: str) -> dict[str, dict[str, Tensor]]:
    """The first images of a panel's cells by curve and NFE, and the converged ones last."""
    chosen = [r for r in run.results if r.cell.slug in names and r.cell.seed == run.config.seeds[0]]
    found: dict[str, dict[str, Tensor]] = {}
    for result in sorted(chosen, key=lambda r: r.cell.nfe):
        row = found.setdefault(result.cell.curve, {})
        row[f"NFE {result.cell.nfe}"] = thumbnails(result.pixels)
    for (panel, _), target in run.targets.items():
        if panel.title == title:
            for row in found.values():
                row["reference"] = thumbnails(quantise(target.samples[: run.config.preview]))
    return found
