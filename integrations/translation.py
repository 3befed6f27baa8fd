"""From the config of any scheduler class, of diffusers or of ours, to the arguments of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from .families import FAMILIES, defaults
from .keys import CLASS_CHOICES, OWN_KEYS, UNSET, own_names, replaced_keys
from .request import replaces_method


def merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a scheduler from a config of any class, `overrides` on top."""
    given = own_keys(config) if is_own(config) else translated(config, overrides.get("like"))
    # What replaces a method or the nodes replaces what the config said about them.
    dropped = set(replaced_keys(overrides))
    if replaces_method(overrides):
        dropped |= {"solver", "tableau", "compat"}
    if overrides.get("tableau") is not None:
        dropped |= {"spacing", "spacing_options"}
    for name in ("solver", "spacing"):
        # Options belong to the name that they were given with.
        dropped |= {f"{name}_options"} if name in overrides else set()
    kept = {key: value for key, value in given.items() if key not in dropped}
    return {**fitted(kept), **overrides}


def fitted(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with the default for values that only other classes have, as diffusers has it.

    A config that went from class to class has such.
    """
    like = given.get("like", "")
    choices = CLASS_CHOICES.get(like, {})
    return {
        key: value if value in choices.get(key, (value,)) else defaults(like)[key]
        for key, value in given.items()
    }


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether a config is one of ours, not one of a class that carries ours along as unknown keys.

    One that was not saved does not say so. It counts as theirs if somebody set a key that ours has
    not; until then it gives back what it was made from, as between classes of diffusers.
    """
    if "like" not in config or config.get("_class_name") in FAMILIES:
        return False
    return not foreign_keys(config)


def foreign_keys(config: Mapping[str, Any]) -> set[str]:
    """The keys that somebody set and that a config of ours with this `like` has not."""
    told = {key for key in config if not key.startswith("_")} - set(config.get(UNSET, ()))
    return told - own_names(config["like"])


def own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config of ours that were set."""
    known = own_names(config["like"]) - set(config.get(UNSET, ()))
    return {key: value for key, value in config.items() if key in known}


def translated(config: Mapping[str, Any], like: str | None) -> dict[str, Any]:
    """The keys of another class's config, and that class, or the one in `like`, under `like`."""
    found = recognised(config)
    if not found and like is None:
        raise ValueError(
            f"this config is of no scheduler class that is known ({config.get('_class_name')}); "
            f"name one with like=, one of {', '.join(FAMILIES)}"
        )
    if len(found) > 1 and like is None:
        warnings.warn(
            f"this config may be of {' or '.join(found)}; taking the first. Say which with like=",
            stacklevel=4,
        )
    target = like or found[0]
    if target not in FAMILIES:
        # Said by whoever checks `like`.
        return {"like": target}
    source = found[0] if found and target not in found else target
    if FAMILIES[source].law != FAMILIES[target].law:
        return {"like": target, **of_another_law(config, source, target)}
    known = own_names(target) if source != target else set(defaults(target))
    unset = set(config.get(UNSET, ()))
    said = {key: value for key, value in config.items() if key in known - set(OWN_KEYS)}
    if source != target:
        said = {key: value for key, value in said.items() if key not in unset}
    return {"like": target, **said}


def of_another_law(config: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """The keys of a flow's config for a class of both worlds; ValueError for other pairs."""
    if FAMILIES[source].law != "flow" or FAMILIES[target].law != "table":
        raise ValueError(
            f"the noise levels in a config of {source} are not of the kind that {target} has; "
            f"leave out like="
        )
    known = own_names(target) - set(OWN_KEYS)
    said = {key: value for key, value in config.items() if key in known}
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return {**said, **flow, "flow_shift": config.get("shift", 1.0)}


def recognised(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config may be of: the one it names, or those with these very keys.

    One that was made from a config of ours carries our keys along, and with them those of the class
    in `like`: then the classes that explain what is left.
    """
    name = str(config.get("_class_name", ""))
    if name in FAMILIES:
        return [name]
    keys = {key for key in config if not key.startswith("_")}
    if config.get("like") not in FAMILIES:
        return [family for family in FAMILIES if keys == set(defaults(family))]
    foreign = foreign_keys(config)
    return [family for family in FAMILIES if foreign <= set(defaults(family)) <= keys]
