"""Low-rank adapters, by peft: a few numbers to train in place of all weights."""

from __future__ import annotations

from torch import nn

# Layers that adapters are made for: all of these kinds.
LAYERS = (nn.Linear, nn.Conv2d)


def add_adapters(network: nn.Module, rank: int) -> None:
    """Freeze a network and give all its linear and convolutional layers adapters, in place.

    W becomes W + B A with A [rank, in] and B [out, rank], B = 0 to begin with (Hu et al. 2021,
    "LoRA"); only these require gradients. Raises ImportError if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("lora needs the package peft (pip install peft)") from error
    names = [name for name, each in network.named_modules() if isinstance(each, LAYERS)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_adapters(network: nn.Module) -> None:
    """Add adapters to the weights and take them away, in place: the network has its own form."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, layer.get_base_layer())
