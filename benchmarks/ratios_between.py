"""What ratios of compensation are worth that a polynomial tells, beside those of a search.

python benchmarks/ratios_between.py RUNS [--nfe 5,6,8,10] [--guidance 1,2,4] [--between 7:3]
    [--samples 32] [--held-out 200] [--substeps 8] [--method greedy] [--out FILE.md]

UniPC-3 on the bundled digits, on uniform times: ratios are searched for all of --nfe at all of
--guidance, and the cascade of polynomials goes through them (`Ratios`). What it tells for an NFE
and a guidance scale --between is run on held-out noises beside a search there. All searches are
kept in RUNS, so that a call that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fewstep import grid
from fewstep.eval.models import NetworkModel, load_model
from fewstep.eval.report import Section, Table, markdown
from fewstep.samplers import Ratios
from fewstep.search.dc import RatioConfig, course_of, find_ratios
from fewstep.search.lessons import end_error, lessons_of
from fewstep.storage import environment, write_atomically


def compared(
    config: RatioConfig, model: NetworkModel, known: Ratios, runs: Path
) -> list[list[str]]:
    """A row for each NFE and scale of `config`: RMSE bare, as told, as searched, and the ratios."""
    rows = []
    for each in find_ratios(config, model, runs / "between", shown):
        nodes = grid(model.schedule, each.nfe, config.spacing, end=config.end)
        course, told = course_of(config, nodes), known.at(each.nfe, each.guidance)
        _, held_out = lessons_of(config, model, nodes, each.guidance)
        bare, ours, fresh = (
            end_error(course.with_ratios(ratios), held_out)
            for ratios in ((1.0,) * each.nfe, told, each.ratios)
        )
        rows.append(
            [
                *(f"{each.nfe}", f"{each.guidance:g}", f"{bare:.4f}", f"{ours:.4f}"),
                *(f"{fresh:.4f}", f"{ours / fresh:.3f}"),
                *(", ".join(f"{r:.3f}" for r in ratios) for ratios in (told, each.ratios)),
            ]
        )
    return rows


def shown(done: int, total: int, what: str) -> None:
    """Say where it is."""
    print(f"{done} of {total}: {what}", flush=True)


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--nfe", default="5,6,8,10")
    parser.add_argument("--guidance", default="1,2,4")
    parser.add_argument("--between", default="7:3", help="NFE:guidance, several by commas")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--substeps", type=int, default=8)
    parser.add_argument("--method", default="greedy")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = load_model("mnist")
    shared = {
        "method": options.method,
        "samples": options.samples,
        "held_out": options.held_out,
        "substeps": options.substeps,
    }

    def settings(nfe: str, guidance: str) -> RatioConfig:
        asked = {"nfe": nfe.split(","), "guidance": [float(g) for g in guidance.split(",")]}
        return RatioConfig.model_validate(shared | asked)

    found = find_ratios(settings(options.nfe, options.guidance), model, options.runs / "all", shown)
    # Of these alone, whatever else was found there before.
    known = Ratios.fitted({(each.nfe, each.guidance): each.ratios for each in found})
    pairs = [pair.split(":") for pair in options.between.split(",")]
    if asked := [pair for pair in pairs if (int(pair[0]), float(pair[1])) in known.found]:
        parser.error(f"--between {':'.join(asked[0])} is not between: it was searched itself")
    rows = []
    for pair in pairs:
        rows += compared(settings(*pair), model, known, options.runs)
    facts = environment(model.device)
    said = (
        f"`python benchmarks/ratios_between.py RUNS --nfe {options.nfe} --guidance "
        f"{options.guidance} --between {options.between} --samples {options.samples} "
        f"--held-out {options.held_out} --substeps {options.substeps} --method {options.method}`",
        f"UniPC-3 on uniform times, on the bundled digits; RMSE to UniPC-3 with {options.substeps} "
        f"steps for one, of {options.held_out} noises that nothing was searched with",
        f"machine: {facts['device']}, Python {facts['python']}, torch {facts['torch']}",
    )
    head = ["NFE", "guidance", "bare"]
    between = Table(
        [*head, "told", "searched", "told / searched", "ratios told", "ratios searched"], rows
    )
    searched = Table(
        [*head, options.method, "ratios"],
        [
            [
                *(f"{each.nfe}", f"{each.guidance:g}", f"{each.errors['solver']:.4f}"),
                f"{each.errors[options.method]:.4f}",
                ", ".join(f"{ratio:.3f}" for ratio in each.ratios),
            ]
            for each in found
        ],
    )
    sections = [
        Section("Between", (between,)),
        Section("What the polynomial goes through", (searched,)),
        Section("How", (said,)),
    ]
    text = markdown("Ratios between those that were searched", sections)
    if options.out is not None:
        write_atomically(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
