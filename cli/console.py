"""What all commands share: where they print, how they fail, how far they are."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperGroup

from .. import configs, schedules
from ..eval.models import NetworkModel, configured, pick_device
from ..eval.settings import ModelConfig

out = Console()
err = Console(stderr=True)

USAGE, MISSING, INTERRUPTED, NUMERIC = 2, 3, 4, 5
# Where nobody watches a terminal, a line every so many seconds.
QUIET = 30.0

Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ..; auto takes an accelerator if any.")
]
Spacing = Annotated[
    str,
    typer.Option(
        help=f"How the nodes are placed: {', '.join(schedules.SPACINGS)}, ..; or where "
        "`fewstep search grid` left some: runs/gits."
    ),
]
Nfe = Annotated[int, typer.Option(min=1, help="Network evaluations per image.")]

# Settings by diffusers' names, such as --learning_rate 1e-3, stand beside the options.
ANY_SETTING = {"allow_extra_args": True, "ignore_unknown_options": True}

ModelName = Annotated[str | None, typer.Option(help="As in `fewstep generate`.")]
Evaluations = Annotated[
    str | None, typer.Option(help="Network evaluations of a sample, such as 3,5,8.")
]
Guidance = Annotated[
    str | None,
    typer.Option(help="Scale that it is learned for, or several: 1,2,4; 1 is off (the default)."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value for any other setting, repeatable; or --key value, as in diffusers' "
        "scripts.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The folder of the result; default runs/RUN.")
]


class ForPeople(TyperGroup):
    """Errors are one line, and the exit code says of which kind: see `fewstep --help`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a polite request to end is as good as Ctrl-C."""
        before = signal.signal(signal.SIGTERM, interrupt)
        shown, warnings.showwarning = warnings.showwarning, told_once()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            err.print("interrupted; the same command goes on from what is saved")
            raise typer.Exit(INTERRUPTED) from error
        except (OSError, ImportError) as error:
            raise failed(ctx, error, MISSING) from error
        except ArithmeticError as error:
            raise failed(ctx, error, NUMERIC) from error
        except ValueError as error:
            raise failed(ctx, error, USAGE) from error
        finally:
            signal.signal(signal.SIGTERM, before)
            warnings.showwarning = shown


def told_once() -> Any:
    """A function that prints a warning as a line for people, each text once."""
    told: set[str] = set()

    def show(message: Any, *where: Any) -> None:
        text = str(message)
        if text not in told:
            told.add(text)
            err.print(f"[yellow]warning:[/] {escape(text)}", highlight=False)

    return show


def interrupt(number: int, frame: Any) -> None:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def failed(ctx: Any, error: Exception, code: int) -> typer.Exit:
    """Say what went wrong, and give the exit that says of which kind it was."""
    err.print(f"[red]fewstep {ctx.invoked_subcommand}:[/] {escape(str(error))}", highlight=False)
    return typer.Exit(code)


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Give a function (done, total, text) that shows the way left, on stderr.

    A bar on a terminal; elsewhere a line every half minute.
    """
    if not err.is_terminal:
        yield lines(title)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}", style="dim"),
        TextColumn("{task.fields[text]}", style="dim"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(title, total=None, text="", speed="")

        def show(done: int, total: int, text: str) -> None:
            rate = bar.tasks[0].speed
            speed = "" if rate is None else f"{rate:.0f}/s"
            bar.update(task, completed=done, total=total, text=text, speed=speed)

        yield show


def lines(title: str) -> Any:
    """A function (done, total, text) that prints a line now and then."""
    start = last = time.monotonic()
    first = latest = of = 0

    def show(done: int, total: int, text: str) -> None:
        nonlocal start, last, first, latest, of
        now = time.monotonic()
        # Another part of the work goes at another pace.
        if done < latest or total != of:
            start, first, of = now, done, total
        latest = done
        if now - last < QUIET or done == first:
            return
        last = now
        left = (now - start) * (total - done) / (done - first)
        err.print(f"{title}: {done / total:.0%}, {left:.0f} s left, {text}", highlight=False)

    return show


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table: names on the left, numbers right-aligned."""
    out.print(f"\n[bold]{escape(title)}[/]", highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for i, column in enumerate(head):
        # Names may wrap where the terminal is narrow, numbers are not to be cut.
        place: Any = {"justify": "right", "no_wrap": True} if i else {"overflow": "fold"}
        table.add_column(escape(column), **place)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def fits(head: list[str], rows: list[list[str]]) -> bool:
    """Whether `print_table` has room for every cell on one line."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return sum(widths) + 3 * len(widths) <= out.width


def print_lines(title: str, rows: list[list[str]]) -> None:
    """Print a heading, and what is said of each thing below it."""
    out.print(f"\n[bold]{escape(title)}[/]", highlight=False)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        lines = text.replace("\n", "\n" + " " * (width + 4))
        out.print(f"  {name:<{width}}  {lines}", markup=False, highlight=False, soft_wrap=True)


def key_values(option: str, texts: list[str] | None) -> dict[str, Any]:
    """What "key=value" options say, the values as YAML; ValueError for other texts."""
    found = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"{option} wants key=value, not {text!r}")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{option} {text}: no value that YAML knows: {error}") from error
    return found


def flag_values(words: list[str]) -> dict[str, Any]:
    """What "--key value" or "--key=value" words say, as `key_values`; "-" in a key is "_".

    A flag without a value is true. ValueError for words that belong to no flag.
    """
    texts: list[str] = []
    for word in words:
        if word.startswith("--"):
            texts.append(word.removeprefix("--"))
        elif texts and "=" not in texts[-1]:
            texts[-1] += f"={word}"
        else:
            raise ValueError(f"unexpected argument {word!r}: settings are --key value")
    pairs = (text.partition("=") for text in texts)
    return key_values(
        "flags",
        [f"{key.replace('-', '_')}={value if equals else 'true'}" for key, equals, value in pairs],
    )


def overridden(
    values: dict[str, Any], given: dict[str, Any], flags: list[str], change: list[str] | None
) -> dict[str, Any]:
    """Settings with those of options, flags and --set in their place."""
    said = {key: value for key, value in given.items() if value is not None}
    return {**values, **said, **flag_values(flags), **key_values("--set", change)}


def run_settings(
    kind: str, run: str, model: str | None = None, own: Sequence[str] = (), data: str | None = None
) -> dict[str, Any]:
    """The settings of a run, for another model or other images of it if these are named.

    Runs that come with fewstep go without those that are for their `own` model and images, and
    say so; files keep all of theirs.
    """
    path = configs.find(kind, run)
    values = configs.read(path)
    model = None if model == values.get("model") else model
    if model is data is None:
        return values
    left = [key for key in own if key in values and path.parent == configs.packaged(kind)]
    if left:
        err.print(
            f"note: {run} has {', '.join(left)} for its own model and images, and goes without; a "
            "file of settings or --set gives yours",
            highlight=False,
            soft_wrap=True,
        )
    values = {key: each for key, each in values.items() if key not in left}
    if model is not None:
        values["model"] = model
    if data is not None:
        said = configs.checked(ModelConfig, values.get("model"), run)
        values["model"] = said.model_copy(update={"data": data})
    return values


def named_run(word: str, usual: str, flags: list[str]) -> tuple[str, list[str]]:
    """The run that is named, and the flags; the `usual` one where the first word is a flag."""
    return (usual, [word, *flags]) if word.startswith("-") else (word, flags)


def listed(text: str | None) -> list[str] | None:
    """The items of a comma-separated option."""
    return None if text is None else [item.strip() for item in text.split(",") if item.strip()]


def network_of(config: ModelConfig, device: str) -> NetworkModel:
    """The model of a training, or of a search along its samples; ValueError if it is no network."""
    loaded = configured(config, pick_device(device))
    if not isinstance(loaded, NetworkModel):
        raise ValueError(
            f"{config.id} is a whole pipeline with a loop of its own; this needs its network alone"
        )
    return loaded
