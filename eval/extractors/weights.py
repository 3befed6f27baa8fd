"""Files of published weights: where a copy may lie, whether it is the right one, downloading."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from tqdm import tqdm

BLOCK = 1 << 20
# What other programs on this machine understand as "do not use the network", and our own.
OFFLINE = ("FEWSTEP_OFFLINE", "HF_HUB_OFFLINE")
# Names a repository of the Hugging Face hub (owner/name) whose local cache may have files.
REPOSITORY = "FEWSTEP_WEIGHTS_REPO"


class MissingWeights(FileNotFoundError):
    """No right copy of a file of weights; the text says where it was looked for and what helps."""


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Parameters
    ----------
    what
        What it is, for people.
    names
        The names it has at different publishers; the first is the one we give it.
    sha256, size
        In hexadecimal, in bytes; no other file is taken for it.
    urls
        Where to download it, in this order.
    variable
        The environment variable that may name a copy.
    elsewhere
        Where other packages keep it, with {cache}, {torch} and {temporary} for the user's cache
        folder, torch's, and the system's for temporary files.
    instead
        What to do without the file, for people.
    also
        The same numbers in other files: taken where they are found, never downloaded.
    """

    what: str
    names: tuple[str, ...]
    sha256: str
    size: int
    urls: tuple[str, ...]
    variable: str
    elsewhere: tuple[str, ...] = ()
    instead: str = ""
    also: tuple[WeightsFile, ...] = ()

    @property
    def versions(self) -> tuple[WeightsFile, ...]:
        """The file, then those that hold the same."""
        return (self, *self.also)

    @property
    def identity(self) -> str:
        """Names, size and sha256 in one line."""
        return f"{' or '.join(self.names)}, {self.size:,} bytes, sha256 {self.sha256}"


class Found(NamedTuple):
    """A file that exists and the sha256 of what is in it."""

    path: Path
    sha256: str


def find(
    file: WeightsFile,
    path: Path | str | None = None,
    *,
    offline: bool = False,
    allow_unverified: bool = False,
) -> Found:
    """A right copy of `file`: at `path`, else where its variable says, else the first in `places`.

    If there is none it is downloaded into our cache, unless `offline`, FEWSTEP_OFFLINE or
    HF_HUB_OFFLINE. A wrong file in one of the places is passed over; one that was asked for raises
    ValueError with what was found and expected, or is taken with `allow_unverified`.
    MissingWeights if that leaves nothing.
    """
    given = path or os.environ.get(file.variable)
    if given:
        return checked(file, Path(given).expanduser(), allow_unverified)
    tried = []
    for version in file.versions:
        for place in places_of(version):
            if (wrong := fault(version, place)) is None:
                return Found(place, version.sha256)
            tried.append(f"{place}: {wrong}")
    if offline or is_offline():
        raise MissingWeights(lament(file, [*tried, "download: not tried, being offline"]))
    target = cache_folder() / file.names[0]
    try:
        download(file, target)
    except OSError as error:
        raise MissingWeights(lament(file, [*tried, f"download: {error}"])) from error
    return Found(target, file.sha256)


def checked(file: WeightsFile, path: Path, allow_unverified: bool) -> Found:
    """The file that somebody named, if it is the right one in any version."""
    if not path.is_file():
        raise MissingWeights(lament(file, [f"{path}: {fault(file, path)}"]))
    found = sha256_of(path)
    if allow_unverified or any(found == version.sha256 for version in file.versions):
        return Found(path, found)
    expected = "\n".join(f"  {version.identity}" for version in file.versions)
    raise ValueError(
        f"{path} is not {file.what}: found {path.stat().st_size:,} bytes, sha256 {found}, "
        f"expected\n{expected}\n"
        f"download it again, or allow unverified weights, whose numbers go by another name"
    )


def places(file: WeightsFile) -> list[Path]:
    """Every path at which `find` looks for a copy in any version, whether or not there is one."""
    return [place for version in file.versions for place in places_of(version)]


def places_of(file: WeightsFile) -> list[Path]:
    """Of this version: our cache, torch's, those of other packages, the Hugging Face hub's."""
    hub = Path(torch.hub.get_dir())
    own = [folder / name for folder in (cache_folder(), hub / "checkpoints") for name in file.names]
    folders = {"cache": user_cache(), "torch": hub.parent, "temporary": tempfile.gettempdir()}
    others = [Path(place.format(**folders)) for place in file.elsewhere]
    repository = os.environ.get(REPOSITORY)
    cached = (try_to_load_from_cache(repository, name) for name in file.names if repository)
    return [*own, *others, *(Path(place) for place in cached if isinstance(place, str))]


def user_cache() -> Path:
    """$XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def cache_folder() -> Path:
    """Where downloads go."""
    return user_cache() / "fewstep" / "weights"


def fault(file: WeightsFile, path: Path) -> str | None:
    """What is wrong with a copy of exactly this version; None if nothing."""
    if not path.exists():
        return "no such file"
    if not path.is_file():
        return "not a file"
    try:
        if (size := path.stat().st_size) != file.size:
            return f"found {size:,} bytes, expected {file.size:,}"
        found = sha256_of(path)
    except OSError as error:
        return f"not readable ({error.strerror})"
    return None if found == file.sha256 else f"found sha256 {found}, expected {file.sha256}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(file: WeightsFile, target: Path) -> None:
    """Download `file` once, however many processes ask: `target` is the right file or untouched.

    Raises OSError with what went wrong at every address.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        # Another process may have been here while this one waited.
        if fault(file, target) is None:
            return
        partial = target.with_name(f".{target.name}.tmp")
        wrong = {}
        try:
            for url in file.urls:
                wrong[url] = transfer(url, partial, file)
                if wrong[url] is None:
                    os.replace(partial, target)
                    return
        finally:
            partial.unlink(missing_ok=True)
    raise OSError("; ".join(f"{url}: {why}" for url, why in wrong.items()))


def transfer(url: str, partial: Path, file: WeightsFile) -> str | None:
    """Copy what is at `url` to the disk; what is wrong with it, None if nothing."""
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as source,
            partial.open("wb") as sink,
            tqdm(
                total=file.size, unit="B", unit_scale=True, desc=file.names[0], disable=None
            ) as bar,
        ):
            # One byte more than expected is enough to know that it is another file.
            while block := source.read(min(BLOCK, file.size + 1 - sink.tell())):
                sink.write(block)
                bar.update(len(block))
            sink.flush()
            os.fsync(sink.fileno())
    except (OSError, http.client.HTTPException) as error:
        return f"{error}"
    return fault(file, partial)


def lament(file: WeightsFile, tried: list[str]) -> str:
    """The text of MissingWeights."""
    return "\n".join(
        [
            f"{file.what}: no copy found",
            "looked for",
            *(f"  {version.identity}" for version in file.versions),
            "tried",
            *(f"  {each}" for each in tried),
            "published at",
            *(f"  {url}" for version in file.versions for url in version.urls),
            f"Put a copy into {cache_folder()}, or set {file.variable} to its path.",
            *([file.instead] if file.instead else []),
        ]
    )


def is_offline() -> bool:
    """Whether an environment variable forbids the network, as the Hugging Face hub reads it."""
    said = (os.environ.get(name, "").strip().upper() for name in OFFLINE)
    return any(text in {"1", "ON", "YES", "TRUE"} for text in said)
