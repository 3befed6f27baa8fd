"""Files of reference statistics: our own, and those of EDM, ADM, clean-fid, pytorch-fid, EDM2."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from ..storage import environment, write_atomically
from ..zoo.pickles import read_pickle
from .extractors.resize import RESIZES
from .metrics import Moments, moments
from .metrics.moments import ROUNDING
from .statistics import Statistics

# What clean-fid calls the resizes in its file names.
CONVENTIONS = {"legacy_tensorflow": "tf1", "legacy_pytorch": "torch", "clean": "clean"}
# Entries of EDM2's files by extractor, and how it resizes for Inception.
EDM2 = {"inception": "fid", "dinov2": "fd_dinov2"}
EDM2_RESIZE = "tf1 to 299"
# Names of all features of a set, in files of score_sde and of clean-fid.
ACTIVATIONS = ("pool_3", "feats")
DAMAGE = (OSError, ValueError, EOFError, BadZipFile, zlib.error)


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Write statistics, atomically; the suffix says how.

    .npz holds `mu`, `sigma` (which EDM, pytorch-fid and clean-fid read), `mu_s`, `sigma_s` (ADM) if
    there are any, and `n`, `factor`, `members` and the JSON text `meta` of our own. .pkl is that of
    EDM2, which has room for `mu`, `sigma` and `n` alone. Raises ValueError as `check_savable` does.
    """
    path = Path(path)
    check_savable(statistics.facts, path)
    write_atomically(path, as_edm2(statistics) if path.suffix == ".pkl" else as_npz(statistics))


def check_savable(facts: Mapping[str, str], path: Path) -> None:
    """ValueError for another suffix, or statistics that EDM2 has no entry for."""
    if path.suffix not in (".npz", ".pkl"):
        raise ValueError(f"statistics are written as .npz or .pkl (EDM2), not {path.name!r}")
    if path.suffix == ".npz":
        return
    name = facts["extractor"]
    if name not in EDM2:
        raise ValueError(f"EDM2's files know {', '.join(EDM2)}, not {name}: write an .npz")
    # Nothing in the file would say so.
    if name == "inception" and facts.get("resize") != EDM2_RESIZE:
        raise ValueError(
            f"EDM2's files are of images resized by {EDM2_RESIZE}, these by {facts.get('resize')}: "
            "write an .npz"
        )


def as_edm2(statistics: Statistics) -> bytes:
    """The content of a file of EDM2."""
    found = statistics.features
    entry = {"mu": found.mean.numpy(), "sigma": found.cov.numpy()}
    return pickle.dumps({"num_images": found.n, EDM2[statistics.facts["extractor"]]: entry})


def as_npz(statistics: Statistics) -> bytes:
    """The content of a file of our own."""
    found, spatial = statistics.features, statistics.spatial
    meta = {
        "facts": dict(statistics.facts),
        "origin": dict(statistics.origin),
        "versions": environment(torch.device("cpu")),
    }
    parts = {
        "mu": found.mean,
        "sigma": found.cov,
        "factor": found.factor,
        "n": found.n,
        "mu_s": None if spatial is None else spatial.mean,
        "sigma_s": None if spatial is None else spatial.cov,
        "members": statistics.members,
        "meta": json.dumps(meta),
    }
    arrays: dict[str, Any] = {k: np.asarray(v) for k, v in parts.items() if v is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def load_statistics(
    path: str | Path, extractor: str = "inception", convention: str | None = None
) -> Statistics:
    """Read statistics of our own or of another program.

    Files of other programs do not say how the images were resized: `convention` does ("tf1",
    "torch", "clean"), else the name of the file, else "tf1" is assumed with a warning. Of an EDM2
    file the entry of `extractor` is taken. Activations (`pool_3` of score_sde, `feats` of
    clean-fid) give moments and members. Raises ValueError for a file that is none of these, is
    damaged, or holds no covariance, and for a convention that is none, or of a file that says its
    own; FileNotFoundError if there is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no reference statistics at {path}")
    if convention is not None and convention not in RESIZES:
        raise ValueError(f"convention must be one of {', '.join(RESIZES)}, not {convention!r}")
    edm2 = path.suffix == ".pkl"
    arrays = {} if edm2 else npz_arrays(path)
    meta = own_meta(arrays, path)
    if convention is not None and (edm2 or meta):
        raise ValueError(f"{path} says itself how its images were resized: leave convention out")
    if edm2:
        return from_edm2(read_pickle(path), path, extractor)
    facts = meta["facts"] if meta else foreign_facts(path, convention)
    for name in ACTIVATIONS:
        if name in arrays:
            return from_activations(arrays[name], path, facts)
    n = int(arrays["n"]) if "n" in arrays else None
    some = torch.from_numpy(arrays["members"]) if "members" in arrays else None
    found = from_arrays(arrays, path, "mu", "sigma", n, arrays.get("factor"))
    spatial = from_arrays(arrays, path, "mu_s", "sigma_s", n) if "mu_s" in arrays else None
    return Statistics(facts, found, spatial, some, meta.get("origin", {"file": path.name}))


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """All in an .npz but images; ValueError if it is none, or damaged."""
    try:
        # What numpy takes for something else than an archive may be a pickle.
        with ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file if name != "arr_0"}
    except DAMAGE as error:
        raise ValueError(f"{path} is no file of statistics, or damaged: {error}") from error


def own_meta(arrays: Mapping[str, np.ndarray], path: Path) -> Mapping[str, Any]:
    """What a file of our own says of itself; empty for files of other programs."""
    if "meta" not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays["meta"]))
        return {"facts": dict(meta["facts"]), "origin": dict(meta["origin"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has an entry meta that is not ours, or damaged") from error


def from_activations(features: np.ndarray, path: Path, facts: Mapping[str, str]) -> Statistics:
    """The statistics of all features [N, D] of a set."""
    try:
        found = moments(torch.from_numpy(features))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    members = torch.from_numpy(features).float()
    return Statistics(facts, found, None, members, {"file": path.name, "count": len(members)})


def from_edm2(value: Any, path: Path, extractor: str) -> Statistics:
    """The statistics of one extractor in a file of EDM2."""
    name = EDM2.get(extractor, extractor)
    if not isinstance(value, Mapping) or not isinstance(value.get(name), Mapping):
        held = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{path} holds {held}: nothing called {name!r} for {extractor}")
    n = value.get("num_images")
    found = from_arrays(value[name], path, "mu", "sigma", None if n is None else int(n))
    resize = {"resize": EDM2_RESIZE} if extractor == "inception" else {}
    facts = {"extractor": extractor, **resize}
    return Statistics(facts, found, origin={"file": path.name, "count": n})


def from_arrays(
    arrays: Mapping[str, Any], path: Path, mean: str, cov: str, n: int | None, known: Any = None
) -> Moments:
    """Moments by the names of their arrays; ValueError if they are not there, or none."""
    lacking = [name for name in (mean, cov) if name not in arrays]
    if lacking:
        raise ValueError(f"{path} holds {', '.join(arrays)}, and lacks {', '.join(lacking)}")
    try:
        mu, sigma = (
            torch.as_tensor(np.asarray(arrays[name], dtype=np.float64)) for name in (mean, cov)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {mean} and {cov} must be arrays of numbers: {error}") from error
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: {mean} {list(mu.shape)} and {cov} {list(sigma.shape)} are no mean [D] and "
            "covariance [D, D]"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{path}: {mean} or {cov} is not finite")
    if (sigma - sigma.T).abs().max() > ROUNDING * sigma.diagonal().max():
        raise ValueError(f"{path}: {cov} is not symmetric, so it is no covariance")
    return Moments(n, mu, sigma, None if known is None else known_factor(known, sigma, path))


def known_factor(array: np.ndarray, cov: Tensor, path: Path) -> Tensor:
    """The factor F [D, r] in a file; ValueError if F F^T is not the covariance there."""
    factor = torch.from_numpy(array)
    # Any vector of no special direction tells, at none of the cost of the product.
    probe = torch.arange(1.0, len(cov) + 1, dtype=torch.float64).sin()
    if factor.ndim != 2 or len(factor) != len(cov) or factor.dtype != cov.dtype:
        raise ValueError(f"{path}: factor {list(array.shape)} {array.dtype} is none of sigma")
    off = (factor @ (factor.T @ probe) - cov @ probe).norm()
    if not off <= ROUNDING * cov.norm() * probe.norm():
        raise ValueError(f"{path}: factor belongs to another sigma; make the file again")
    return factor


def foreign_facts(path: Path, convention: str | None) -> dict[str, str]:
    """What can be known of a file of another program: Inception, and the resize."""
    if convention is None:
        named = [ours for theirs, ours in CONVENTIONS.items() if f"_{theirs}_" in path.name.lower()]
        convention = named[0] if named else "tf1"
        if not named and not path.name.startswith("VIRTUAL_"):
            warnings.warn(
                f"{path.name} does not say how images were resized; taken for tf1, as EDM and ADM "
                "do. Numbers of another resize are off by several percent: --convention says it",
                stacklevel=3,
            )
    return {"extractor": "inception", "resize": f"{convention} to 299"}
