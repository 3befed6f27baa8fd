"""How much rarer digits become by guidance, and whether they still are digits.

python benchmarks/minority.py CLASSIFIER --judge runs/other [--images 500] [--solver dpmpp-2m]
    [--nfe 20] [--scales 2,5,10] [--self-scales .1,.3] [--out FILE.md]

CLASSIFIER is the folder that `fewstep train minority` left. The judge is a digit classifier that
nothing was trained with, made by `fewstep train mnist-classifier --set architecture=lenet --set
seed=1 --out runs/other`: in its features the distance to the 5 nearest real digits is taken, and
what it gives more than 1/2 to counts as a digit. All ways have the same seeds and labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fewstep import grid, samplers, zoo
from fewstep.eval.extractors import extractor
from fewstep.eval.images import quantise, save_grid
from fewstep.eval.metrics import Neighbours, Rarity
from fewstep.eval.models import Draw, NetworkModel, load_model
from fewstep.eval.report import Picture, Section, Table, markdown
from fewstep.guides.named import parsed, sampled
from fewstep.storage import environment, write_atomically


def numbers(text: str) -> list[float]:
    """Numbers between commas; none of an empty text."""
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    """Measure all ways, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--solver", default="dpmpp-2m")
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--scales", type=numbers, default=[2.0, 5.0, 10.0])
    parser.add_argument("--self-scales", type=numbers, default=[0.1, 0.3])
    parser.add_argument("--out", type=Path, default=Path("runs/minority.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, judge = load_model("mnist"), extractor("mnist-classifier", path=str(given.judge))
    if not isinstance(model, NetworkModel):
        raise TypeError("the bundled digits are a network")
    real = judge(quantise(zoo.mnist().images)).features
    table = samplers.build(given.solver, grid(model.schedule, given.nfe, "uniform"))
    draw = Draw(range(given.images), torch.arange(given.images) % 10)
    ways = {"plain": []} | {
        f"{name} {scale:g}": [parsed(f"{text},scale={scale}")]
        for name, text, scales in (
            ("minority", f"minority,folder={given.classifier}", given.scales),
            ("self-guided", "self", given.self_scales),
        )
        for scale in scales
    }
    rows, pictures, plain = [], [], 0.0
    for name, asked in ways.items():
        calls: list[int] = []
        pixels = quantise(sampled(model, table, draw, asked, on_call=calls.append))
        outputs = judge(pixels)
        rarity, near = Rarity(real), Neighbours(real)
        for part in outputs.features.split(max(1, given.images // 20)):
            rarity.update(part)
            near.update(part)
        found, precision = rarity.estimate(), near.estimate()["precision"]
        sure = outputs.logits.softmax(1).amax(1)
        right = float((outputs.logits.argmax(1) == draw.labels).double().mean())
        plain = plain or found["neighbour_distance"].value
        file = given.out.with_name(f"{given.out.stem}-{name.replace(' ', '-')}.png")
        save_grid(pixels[:100], file, columns=20)
        pictures.append(Picture(file.name, name))
        rows.append(
            [
                name,
                *(f"{each.value:.3f} +- {each.error:.3f}" for each in found.values()),
                f"{100 * (found['neighbour_distance'].value / plain - 1):+.1f} %",
                f"{100 * float((sure > 0.5).double().mean()):.1f} %",
                f"{100 * right:.1f} %",
                f"{precision.value:.3f}",
                f"{sum(calls) / given.images:g}",
            ]
        )
        print(rows[-1], flush=True)
    head = ["", "distance to 5 neighbours", "outlier factor", "rarity score", "distance, beside "]
    head[-1] += "plain"
    head += ["recognised (p > .5)", "as its label", "precision", "calls"]
    said = [
        f"{given.images} images, labels in turn, seeds from 0; {given.solver} at {given.nfe} steps",
        f"features and recognition by another classifier ({judge.name}, "
        "`fewstep train mnist-classifier --set architecture=lenet --set seed=1`)",
        f"`python benchmarks/minority.py {given.classifier.name} --judge {given.judge.name} "
        f"--images {given.images} --solver {given.solver} --nfe {given.nfe} "
        f"--scales {','.join(f'{s:g}' for s in given.scales)} "
        f"--self-scales {','.join(f'{s:g}' for s in given.self_scales)}`",
        ", ".join(f"{k} {v}" for k, v in environment(torch.device("cpu")).items()),
    ]
    sections = [
        Section("Measures", (Table(head, rows),)),
        Section("Samples, the same seeds and labels", tuple(pictures)),
        Section("How", (said,)),
    ]
    text = markdown("Rare digits", sections)
    write_atomically(given.out, text)
    print(text)


if __name__ == "__main__":
    main()
