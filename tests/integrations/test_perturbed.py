"""Perturbed layers, against attention written out and against what diffusers has of it."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fewstep
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models import attention_processor as processors
from fewstep import samplers, zoo
from fewstep.integrations import perturbed
from fewstep.samplers import guidance
from torch.nn import functional

from . import components

BATCH, TIMES = 2, torch.tensor([10.0, 700.0])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ready(network):
    """Random weights that are large enough for every layer to matter."""
    generator = torch.Generator().manual_seed(7)
    for name, each in network.named_parameters():
        if "norm" not in name:
            each.data = torch.randn(each.shape, generator=generator) / math.sqrt(each[0].numel())
    return network.eval()


def image_unet():
    return ready(components.ldm()["unet"]), {"sample": drawn(BATCH, 6, 8, 8), "timestep": TIMES}


def text_unet(height=8, width=8):
    x, text = drawn(BATCH, 4, height, width), drawn(BATCH, components.TOKENS, components.TEXT)
    given = {"sample": x, "timestep": TIMES, "encoder_hidden_states": text}
    return ready(components.unet()), given


def dit():
    given = {
        "hidden_states": drawn(BATCH, 4, 8, 8),
        "timestep": TIMES,
        "class_labels": torch.tensor([1, 5]),
    }
    return ready(components.dit()["transformer"]), given


def sd3():
    given = {
        "hidden_states": drawn(BATCH, 16, 8, 8),
        "timestep": TIMES,
        "encoder_hidden_states": drawn(BATCH, components.TOKENS, components.TEXT),
        "pooled_projections": drawn(BATCH, components.TEXT),
    }
    return ready(components.stable_diffusion_3()["transformer"]), given


def wan():
    given = {
        "hidden_states": drawn(BATCH, 4, 1, 8, 8),
        "timestep": TIMES,
        "encoder_hidden_states": drawn(BATCH, components.TOKENS, components.TEXT),
    }
    return ready(components.wan()["transformer"]), given


NETWORKS = {
    "image": (image_unet, "mid_block"),
    "text": (text_unet, "*.attn1"),
    "dit": (dit, "transformer_blocks"),
    "sd3": (sd3, "transformer_blocks.0.attn"),
    "wan": (wan, "blocks.1"),
}
every = pytest.mark.parametrize("name", NETWORKS)


@torch.no_grad()
def run(network, given):
    return network(**given).sample


def near(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def differs(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-3


def by_hand(attention, x, weights, kernel=None):
    """Attention from its weights: `weights` makes a map [B, heads, N, N] of queries and keys."""
    inner = x.flatten(2).mT if x.ndim == 4 else x
    norm = attention.group_norm
    if norm is not None:
        groups = functional.group_norm(inner.mT, norm.num_groups, norm.weight, norm.bias, norm.eps)
        inner = groups.mT
    query, key, value = (
        functional.linear(inner, each.weight, each.bias)
        for each in (attention.to_q, attention.to_k, attention.to_v)
    )
    if kernel is not None:
        query = kernel @ query
    query, key, value = (
        each.unflatten(2, (attention.heads, -1)).transpose(1, 2) for each in (query, key, value)
    )
    out = (weights(query, key) @ value).transpose(1, 2).flatten(2)
    out = functional.linear(out, attention.to_out[0].weight, attention.to_out[0].bias)
    out = out.mT.reshape(x.shape) if x.ndim == 4 else out
    return out + x if attention.residual_connection else out


def softmax(query, key):
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)


def identity(query, key):
    return torch.eye(query.shape[2]).expand(*query.shape[:2], -1, -1)


def blur_by_hand(height, width, deviation):
    """The matrix of a blur in the plane, number by number, and cut off nowhere."""
    points = [(i, j) for i in range(height) for j in range(width)]
    rows = [
        [math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * deviation**2)) for k, m in points]
        for i, j in points
    ]
    return torch.tensor([[each / sum(row) for each in row] for row in rows])


LAYERS = [
    (image_unet, "mid_block.attentions.0", (BATCH, 8, 4, 6)),
    (text_unet, "mid_block.attentions.0.transformer_blocks.0.attn1", (BATCH, 24, 16)),
]


@pytest.mark.parametrize(("make", "layer", "shape"), LAYERS, ids=["image", "tokens"])
@torch.no_grad()
def test_attention_written_out(make, layer, shape):
    network, _ = make()
    x, attention = drawn(*shape, seed=3), network.get_submodule(layer)

    def found(*options):
        made = perturbed(network, layer, *options).module(4 / 6)
        return made.get_submodule(layer)(x)

    near(attention(x), by_hand(attention, x, softmax))
    near(found("identity"), by_hand(attention, x, identity))
    for deviation in (0.3, 1.0, 4.0):
        kernel = blur_by_hand(4, 6, deviation)
        near(found("blurred", deviation), by_hand(attention, x, softmax, kernel))
    mean = torch.full((24, 24), 1 / 24)
    near(found("blurred"), by_hand(attention, x, softmax, mean))
    near(found("blurred", 1e4), found("blurred"))
    near(found("blurred", 0.05), attention(x))
    differs(found("blurred"), attention(x))


@every
@pytest.mark.parametrize("kind", ["identity", "blurred", "skipped"])
def test_the_network_is_never_changed(name, kind):
    """Not even while a pass runs: from inside of it the network is asked, here and in a thread."""
    make, layers = NETWORKS[name]
    # One of two streams is skipped with the other only.
    layers = layers.removesuffix(".attn") if kind == "skipped" else layers
    network, given = make()
    plain, inside = run(network, given), []
    modules = dict(network.named_modules())
    before = {key: (dict(vars(each)), dict(each._modules)) for key, each in modules.items()}
    weak = perturbed(network, layers, kind)
    first = run(weak, given)
    differs(first, plain)
    assert torch.equal(run(network, given), plain)

    def ask(*_):
        if not inside:
            inside.append(None)
            with ThreadPoolExecutor(1) as pool:
                inside.extend([run(network, given), pool.submit(run, network, given).result()])
            raise KeyError("inside")

    last = [each for each in modules.values() if isinstance(each, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(ask)
    with pytest.raises(KeyError, match="inside"):
        run(weak, given)
    hook.remove()
    assert all(torch.equal(each, plain) for each in inside[1:])
    assert torch.equal(run(network, given), plain)
    assert torch.equal(run(weak, given), first)
    after = {key: (dict(vars(each)), dict(each._modules)) for key, each in modules.items()}
    assert after == before


@pytest.mark.parametrize("name", ["image", "text", "sd3"])
@torch.no_grad()
def test_identity_is_that_of_the_library(name):
    """Its processors take the plain half of a batch and the perturbed one."""
    make, layers = NETWORKS[name]
    network, given = make()
    weak = perturbed(network, layers)
    theirs = copy.deepcopy(network)
    joint = name == "sd3"
    processor = (
        processors.PAGJointAttnProcessor2_0 if joint else processors.PAGIdentitySelfAttnProcessor2_0
    )
    for layer in weak.layers:
        theirs.get_submodule(layer).set_processor(processor())
    twice = {key: torch.cat([each, each]) for key, each in given.items()}
    plain, expected = run(theirs, twice).chunk(2)
    near(run(network, given), plain)
    near(run(weak, given), expected)


@pytest.mark.parametrize(
    ("make", "layer"), [(dit, "transformer_blocks.1.attn1"), (wan, "blocks.0.attn1")]
)
def test_identity_is_that_of_the_hooks_of_the_library(make, layer):
    network, given = make()
    theirs = copy.deepcopy(network)
    attention = theirs.get_submodule(layer)
    forward = attention.forward

    def values(*args, **kwargs):
        with AttentionScoreSkipFunctionMode():
            return forward(*args, **kwargs)

    attention.forward = values
    near(run(perturbed(network, layer), given), run(theirs, given))


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (dit, "transformer_blocks.0"),
        (wan, "blocks.1"),
        (wan, "blocks.0.ffn"),
        (text_unet, "mid_block.attentions.0.transformer_blocks.0"),
        (image_unet, "mid_block.attentions.0"),
        (image_unet, "mid_block.resnets.1"),
    ],
)
def test_a_skipped_layer_returns_what_it_is_given(make, layer):
    network, given = make()
    theirs = copy.deepcopy(network)
    theirs.get_submodule(layer).forward = lambda x, *_, **__: x
    found = run(perturbed(network, layer, "skipped"), given)
    assert torch.equal(found, run(theirs, given))
    differs(found, run(network, given))


@pytest.mark.parametrize(("make", "stack"), [(dit, "transformer_blocks"), (wan, "blocks")])
def test_a_skipped_block_is_not_there(make, stack):
    network, given = make()
    theirs = copy.deepcopy(network)
    del getattr(theirs, stack)[1]
    found = run(perturbed(network, f"{stack}.1", "skipped"), given)
    assert torch.equal(found, run(theirs, given))


@pytest.mark.parametrize("skip", [[0], [1], [0, 1]])
def test_skipped_blocks_of_two_streams_are_those_of_the_library(skip):
    network, given = sd3()
    names = [f"transformer_blocks.{each}" for each in skip]
    found = run(perturbed(network, names, "skipped"), given)
    assert torch.equal(found, run(network, {**given, "skip_layers": skip}))


@every
def test_no_blur_changes_no_bit(name):
    make, layers = NETWORKS[name]
    network, given = make()
    assert torch.equal(run(perturbed(network, layers, "blurred", 0), given), run(network, given))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (4, 16), (10, 14)])
def test_the_plane_of_a_layer_is_that_of_the_image(height, width):
    network, given = text_unet(height, width)
    theirs = copy.deepcopy(network)
    blur = blur_by_hand(height // 2, width // 2, 1.5)
    for name, module in theirs.named_modules():
        if name.endswith("attn1.to_q"):
            module.register_forward_hook(lambda module, args, out: blur @ out)
    near(run(perturbed(network, "*.attn1", "blurred", 1.5), given), run(theirs, given))


def test_a_blur_in_joint_attention_is_of_the_queries_of_the_image():
    network, given = sd3()
    theirs = copy.deepcopy(network)
    queries = theirs.transformer_blocks[0].attn.to_q
    queries.register_forward_hook(lambda module, args, out: out.mean(1, True).expand_as(out))
    near(run(perturbed(network, "transformer_blocks.0", "blurred"), given), run(theirs, given))


def test_names_patterns_and_where_they_are():
    network, _ = text_unet()
    every = perturbed(network, "*").layers
    assert len(every) == 4
    assert all(name.endswith("attn1") for name in every)
    assert (
        perturbed(network, ["mid_block", every[-1]]).layers
        == perturbed(network, [every[-1], "mid_block.*"]).layers
    )
    assert perturbed(network, "down_blocks.1").layers == every[:1]
    blocks = sd3()[0]
    named = [f"transformer_blocks.{n}" for n in (0, 1)]
    assert list(perturbed(blocks, "transformer_blocks", "skipped").layers) == named
    assert list(perturbed(blocks, "transformer_blocks.*", "skipped").layers) == named


def test_what_cannot_be_perturbed_is_said():
    network, given = text_unet()
    cross = "mid_block.attentions.0.transformer_blocks.0.attn2"
    for pattern, message in (
        (cross, "attn2' is cross-attention; there is down_blocks.1.*attn1, "),
        ("*.attn2", "is cross-attention"),
        ("middle", "'middle' is no self-attention; there is down_blocks.1"),
        (["mid_block", "mid_block.resnets"], "'mid_block.resnets' is no self-attention"),
        ([], "no layers were named"),
    ):
        with pytest.raises(ValueError, match=message):
            perturbed(network, pattern)
    with pytest.raises(ValueError, match=r"'middle' is no module; there is conv_in, .* \.\.$"):
        perturbed(network, "middle", "skipped")
    with pytest.raises(ValueError, match="kind is one of identity, blurred, skipped"):
        perturbed(network, "mid_block", "shuffled")
    for blur in (-1, math.nan):
        with pytest.raises(ValueError, match="blur must be 0 or more"):
            perturbed(network, "mid_block", "blurred", blur)
    for layer in ("down_blocks.0", "down_blocks.0.downsamplers.0", "mid_block.attentions.0"):
        with pytest.raises(ValueError, match=f"{layer} cannot be skipped"):
            run(perturbed(network, layer, "skipped"), given)
    flux = components.flux()["transformer"]
    with pytest.raises(ValueError, match=r"FluxAttnProcessor.*can be skipped only"):
        perturbed(flux, "transformer_blocks")
    fused, _ = dit()
    fused.transformer_blocks[1].attn1.fuse_projections()
    assert perturbed(fused, "transformer_blocks.0").layers
    with pytest.raises(ValueError, match="fused projections"):
        perturbed(fused, "transformer_blocks")
    video, given = wan()
    with pytest.raises(ValueError, match="use blur=inf"):
        run(perturbed(video, "blocks", "blurred", 1.0), given)
    with pytest.raises(ValueError, match="no plane"):
        perturbed(network, "mid_block", "blurred", 1.0).module(3.0)(*text_unet()[1].values())


@every
def test_what_comes_later_is_in_the_next_pass(name):
    make, layers = NETWORKS[name]
    network, given = make()
    weak = perturbed(network, layers)
    before = run(weak, given)
    attention = network.get_submodule(weak.layers[0])
    attention.to_v = torch.nn.Linear(attention.to_v.in_features, attention.to_v.out_features)
    differs(run(weak, given), before)
    assert torch.equal(run(weak, given), run(perturbed(network, layers), given))
    network.double()
    assert weak.dtype == torch.float64


def test_hooks_that_move_weights_go_along():
    network, given = dit()
    weak = perturbed(network, "transformer_blocks")
    expected, calls = run(weak, given), []

    class Counted(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    for each in (network, network.transformer_blocks[0], network.transformer_blocks[0].attn1):
        add_hook_to_module(each, Counted())
    assert torch.equal(run(weak, given), expected)
    assert len(calls) == 3
    assert network not in calls


def test_hooks_that_hold_the_network_are_refused():
    network, given = dit()
    weak = perturbed(network, "transformer_blocks.0")
    held = copy.copy(network)
    held.forward = lambda **given: network(**given)
    with pytest.raises(ValueError, match="compiled, or has hooks"):
        run(perturbed(held, "*.attn1"), given)
    registry = HookRegistry.check_if_exists_or_initialize(network.transformer_blocks[0])
    registry.register_hook(DiffusersHook(), "hook")
    with pytest.raises(ValueError, match="BasicTransformerBlock is compiled, or has hooks"):
        run(weak, given)
    registry.remove_hook("hook")
    differs(run(weak, given), run(network, given))


def test_a_network_compiled_in_place_is_perturbed():
    network, given = dit()
    weak = perturbed(network, "transformer_blocks")
    expected, plain = run(weak, given), run(network, given)

    def held(call, *args, **given):
        return call(*args, **given)

    for each in (network, network.transformer_blocks[0]):
        each._compiled_call_impl = partial(held, each._call_impl)
    assert torch.equal(run(network, given), plain)
    assert torch.equal(run(weak, given), expected)


@pytest.mark.parametrize("kind", ["identity", "blurred", "skipped"])
def test_gradients_are_those_of_the_perturbed_pass(kind):
    """Also where the library runs blocks again for them, after the call."""
    network, given = text_unet()
    weak = perturbed(network, "mid_block.attentions.0.transformer_blocks.0.attn1", kind)
    found = []
    for _ in range(2):
        network.zero_grad()
        x = given["sample"].requires_grad_()
        found.append(torch.autograd.grad(weak(**given).sample.square().sum(), x)[0])
        network.train()
        network.enable_gradient_checkpointing()
    near(*found)
    differs(found[0], torch.autograd.grad(network(**given).sample.square().sum(), x)[0])


@pytest.mark.parametrize("options", [("identity",), ("blurred",), ("blurred", 1.0)])
def test_in_half_precision(options):
    network, given = text_unet()
    expected = run(perturbed(network, "*", *options), given)
    half = {key: each if key == "timestep" else each.bfloat16() for key, each in given.items()}
    found = run(perturbed(network.bfloat16(), "*", *options), half)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.05 * expected.norm()


def test_guided_by_a_perturbed_network_and_classes():
    """c + s (c - p), and u + w (c - u) + s (c - p) as one nested in the other; three calls."""
    model = zoo.mnist_model()
    schedule, prediction = samplers.from_diffusers_config(model.scheduler_config)
    grid = fewstep.grid(schedule, 6, "uniform")
    x = fewstep.noise(grid, (1, 28, 28), seeds=range(2))
    calls = []

    def denoiser(network, *labels):
        inner = samplers.denoiser(network, schedule, prediction, class_labels=torch.tensor(labels))

        def counted(x, node):
            calls.append(network)
            with torch.no_grad():
                return inner(x, node)

        return counted

    weak = perturbed(model.network, "mid_block")
    c, p = denoiser(model.network, 3, 5), denoiser(weak, 3, 5)
    u, s = denoiser(model.network, 10, 10), 1.5
    for node in grid.nodes[:-1]:
        x0_c, x0_p, x0_u = (each(x, node) for each in (c, p, u))
        differs(x0_c, x0_p)
        near(guidance.autoguidance(c, p, 1 + s)(x, node), x0_c + s * (x0_c - x0_p))
        for scale in (3.0, guidance.interval(3.0, 0.3, 5.0)):
            w = scale(node) if callable(scale) else scale

            def ratio(node, scale=scale):
                return 1 + s / (scale(node) if callable(scale) else scale)

            calls.clear()
            both = guidance.cfg(guidance.autoguidance(c, p, ratio), u, scale)
            found = both(x, node)
            assert len(calls) == (2 if w == 1 else 3)
            near(found, x0_u + w * (x0_c - x0_u) + s * (x0_c - x0_p))
