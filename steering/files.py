"""Trees in files: all that was found is there again, and goes on growing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..samplers import State
from ..samplers.executor import joined
from ..samplers.recall import STREAMS
from ..storage import digest, replacing
from .chain import Chain
from .tree import Tree, TreeNode, TreeRules

FACTS = "facts"
# What is known of each node besides its state.
COLUMNS = {
    **{"level": int, "parent": int, "visits": int},
    **{"value": float, "weight": float, "log_ratio": float},
}


def save_tree(tree: Tree, chain: Chain, path: str | Path, about: str = "") -> None:
    """Write a tree and the states of all its nodes as one safetensors file, atomically.

    Denoiser and reward are not in it: `load_tree` gets the same chain again, and `about` says what
    else a tree must go on with, such as a digest of the model and the name of the reward.
    """
    tensors = {
        name: torch.tensor([getattr(node, name) for node in tree.nodes], dtype=dtype_of(kind))
        for name, kind in COLUMNS.items()
    }
    levels: dict[str, Any] = {}
    for level in range(chain.depth + 1):
        found = [node.state for node in tree.nodes if node.level == level and node.state]
        if found:
            state = joined(found)
            levels[str(level)] = {
                "step": state.step,
                "live": state.live,
                "live_noises": state.live_noises,
            }
            tensors |= {f"{level}.{name}": each for name, each in tensors_of(state).items()}
    facts = {
        "chain": key_of(chain),
        "about": about,
        "rules": {**asdict(tree.rules), "scale": str(tree.rules.scale)},
        "levels": levels,
        **{name: getattr(tree, name) for name in ("seed", "iterations", "evaluations")},
        "reward_calls": tree.reward_calls,
        "offset": str(tree.offset),
    }
    with replacing(Path(path)) as partial:
        on_cpu = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        save_file(on_cpu, partial, {FACTS: json.dumps(facts)})


def load_tree(path: str | Path, chain: Chain, about: str = "") -> Tree:
    """The tree in a file of `save_tree`, its states on the device of the chain.

    FileNotFoundError if there is none; ValueError for a damaged file, and for a tree that has grown
    on another table, on other levels or in another shape, or is about something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no tree at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads(file.metadata()[FACTS])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["chain"] != key_of(chain):
            raise ValueError("it has grown on another table, other levels or another shape")
        if facts["about"] != about:
            raise ValueError(f"it is about {facts['about']!r}, not {about!r}")
        columns = {name: tensors[name].tolist() for name in COLUMNS}
        rules = TreeRules(**{**facts["rules"], "scale": float(facts["rules"]["scale"])})
        states = {
            int(level): state_of(int(level), tensors, said, chain)
            for level, said in facts["levels"].items()
        }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no tree of this chain, or is damaged: {error}") from error
    names = ("seed", "iterations", "evaluations", "reward_calls")
    tree = Tree(rules, nodes=[], offset=float(facts["offset"]), **{n: facts[n] for n in names})
    seen = dict.fromkeys(states, 0)
    for i in range(len(columns["level"])):
        known = {name: column[i] for name, column in columns.items()}
        state = None
        if known["level"] >= 0:
            state = states[known["level"]].take([seen[known["level"]]])
            seen[known["level"]] += 1
            tree.nodes[known["parent"]].children.append(i)
        tree.nodes.append(TreeNode(**known, state=state))
    return tree


def tensors_of(state: State) -> dict[str, Tensor]:
    """All tensors of a state, by name."""
    found = {"x": state.x, "seeds": torch.tensor(state.seeds, dtype=torch.int64)}
    found |= {f"output.{i}": each for i, each in enumerate(state.outputs)}
    found |= {f"noise.{i}": each for i, each in enumerate(state.noises)}
    return found | {f"memory.{name}": each for name, each in state.memory.items()}


def state_of(level: int, tensors: dict[str, Tensor], said: dict[str, Any], chain: Chain) -> State:
    """The state of a level, as `tensors_of` names its parts."""
    prefix = f"{level}.memory."
    # Streams are read on the host.
    memory = {
        name.removeprefix(prefix): each if name == prefix + STREAMS else each.to(chain.device)
        for name, each in tensors.items()
        if name.startswith(prefix)
    }

    def several(kind: str, count: int) -> tuple[Tensor, ...]:
        return tuple(tensors[f"{level}.{kind}.{i}"].to(chain.device) for i in range(count))

    return State(
        tensors[f"{level}.x"].to(chain.device),
        said["step"],
        several("output", len(said["live"])),
        several("noise", len(said["live_noises"])),
        tuple(said["live"]),
        tuple(said["live_noises"]),
        tuple(tensors[f"{level}.seeds"].tolist()),
        memory,
    )


def key_of(chain: Chain) -> str:
    """A digest of what a tree's states depend on besides the denoiser."""
    table = chain.table
    numbers = [np.asarray(getattr(table, name)) for name in ("carry", "weights", "noise")]
    grid = [np.asarray(getattr(table.grid, name)) for name in ("alpha", "sigma")]
    said = [list(chain.levels), list(chain.shape), table.basis, str(chain.dtype)]
    return digest(*numbers, *grid, said)


def dtype_of(kind: type) -> torch.dtype:
    """How a column is stored."""
    return torch.float64 if kind is float else torch.int64
