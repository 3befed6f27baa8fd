import hashlib
import json
import math
import zlib

import pytest
import torch
from fewstep.zoo.edm import EDMNetwork
from fewstep.zoo.edm.preconditioning import EDM, IDDPM, VE, VP, iddpm_levels, preconditioning
from fewstep.zoo.edm.published import config_of

DDPMPP = {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
NCSNPP = {
    "model_type": "SongUNet",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CIFAR = {"model_channels": 128, "channel_mult": [2, 2, 2], "augment_dim": 9}
TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
SKIPS = {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip"}
ADM = {
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8, 4],
    "label_dim": 3,
}
IDDPM_TINY = {"model_channels": 64, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
NETWORKS = {
    "ddpmpp": ("VPPrecond", {**DDPMPP, **TINY, "label_dim": 3, "augment_dim": 9}),
    "ncsnpp": ("VEPrecond", {**NCSNPP, **TINY, "channel_mult": [1, 2, 2]}),
    "skips": ("EDMPrecond", {**SKIPS, **TINY}),
    "adm": ("EDMPrecond", ADM),
    "iddpm": ("iDDPMPrecond", IDDPM_TINY),
}


def network(name, options, size=8):
    made = config_of(name, {"img_resolution": size, "img_channels": 3, **options})
    return EDMNetwork(made).eval().requires_grad_(False)


def official(name, size):
    """ADM's last layers stand beside the decoder in the published files."""
    return name.replace(f"dec.{size}x{size}_aux_", "out_")


def filled(net, rename=lambda name: name):
    """Numbers that depend on the name of the tensor and the place in it, of about unit gain."""
    state = net.state_dict()
    for name, value in state.items():
        if not name.endswith("resample_filter"):
            k = torch.arange(value.numel(), dtype=torch.float64)
            wave = torch.sin(k * (1 + k % 5) + zlib.crc32(rename(name).encode()) % 1000)
            gain = 1 if value.ndim < 2 else (value[0].numel() / 2) ** -0.5
            value.copy_((wave * gain).reshape(value.shape))
    return net


def manifest(net, rename=lambda name: name):
    lines = (f"{name} {list(v.shape)}" for name, v in renamed(net.state_dict(), rename))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def renamed(state, rename):
    return sorted((rename(name), value) for name, value in state.items())


# Pixel [1, :, 3, 5] of D and the deviations of D and D - x, measured with the official code
# (NVlabs/edm at 008a4e5) for the same numbers in the same tensors.
GOLDEN = {
    "ddpmpp": [-0.28751, -4.55823, 1.66933, 2.4122, 1.90431],
    "ncsnpp": [-3.27563, 0.26367, -2.72368, 2.40573, 2.06699],
    "skips": [-0.55778, 0.1271, -0.80961, 0.5746, 1.27884],
    "adm": [-0.12372, -0.60167, 0.31342, 0.46358, 1.21957],
    "iddpm": [-1.7178, 2.99013, -3.31336, 2.25626, 1.77315],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_the_official_networks(name):
    kind, options = NETWORKS[name]
    dhariwal = kind == "iDDPMPrecond" or options.get("model_type") == "DhariwalUNet"
    net = filled(network(kind, options), lambda n: official(n, 8) if dhariwal else n)
    x = torch.sin(torch.arange(2 * 3 * 64) * 0.7).reshape(2, 3, 8, 8) * 2
    labels = torch.tensor([2, 0]) if net.label_dim else None
    d = net(x, torch.tensor([0.7, 3.0]), labels)
    found = [*d[1, :, 3, 5].tolist(), d.std().item(), (d - x).std().item()]
    assert found == pytest.approx(GOLDEN[name], abs=3e-5)


# Hashes of names and shapes of the official networks, and their published sizes.
@pytest.mark.parametrize(
    ("name", "options", "size", "count", "digest"),
    [
        ("VPPrecond", {**DDPMPP, **CIFAR}, 32, 55_733_891, "5b64854adf30015f"),
        ("VEPrecond", {**NCSNPP, **CIFAR}, 32, 56_397_827, "ea8d0e56f3c0f158"),
        (
            "EDMPrecond",
            {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "label_dim": 1000},
            64,
            295_899_267,
            "462dae53f27654f3",
        ),
    ],
    ids=["cifar10-vp", "cifar10-ve", "imagenet64-adm"],
)
def test_tensors_of_published_networks(name, options, size, count, digest):
    with torch.device("meta"):
        net = network(name, options, size)
    assert sum(each.numel() for each in net.parameters()) == count
    rename = (lambda n: official(n, 64)) if name == "EDMPrecond" else (lambda n: n)
    assert manifest(net, rename)[:16] == digest


@pytest.mark.parametrize("name", NETWORKS)
def test_no_noise_is_left_alone(name):
    net = filled(network(*NETWORKS[name]))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x, torch.tensor(1e-6)), x, atol=1e-4, rtol=0)
    assert (net(x, torch.tensor(1.0)) - x).abs().max() > 0.1


SIGMAS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)


def test_edm_has_unit_input_and_target():
    data = 0.7
    c = EDM(sigma_data=data)(SIGMAS)
    one = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c.c_in**2 * (data**2 + SIGMAS**2), one)
    # Of the target (x0 - c_skip x) / c_out; c_skip is where c_out is least.
    noise = SIGMAS**2 * c.c_skip**2 + data**2 * (1 - c.c_skip) ** 2
    torch.testing.assert_close(noise, c.c_out**2)
    torch.testing.assert_close(c.c_skip * data**2 + c.c_skip * SIGMAS**2, data**2 * one)
    torch.testing.assert_close(torch.exp(4 * c.label), SIGMAS)


def test_vp_label_is_the_time_of_sigma():
    vp = VP()
    times = [1e-4, 0.01, 0.3, 1.0]
    sigma = torch.tensor([vp.sigma(t) for t in times], dtype=torch.float64)
    c = vp(sigma)
    torch.testing.assert_close(c.label, 999 * torch.tensor(times, dtype=torch.float64))
    # ln alpha, alpha = 1 / sqrt(1 + sigma^2), is -(beta_d t^2 / 4 + beta_min t / 2).
    assert math.log(c.c_in[3]) == pytest.approx(-(19.9 / 4 + 0.1 / 2))
    assert (vp.sigma_max, vp.sigma_min) == (vp.sigma(1.0), pytest.approx(1.0005e-3, rel=1e-5))
    assert c.c_skip.tolist() == [1] * 4
    assert torch.equal(c.c_out, -sigma)


def test_ve_label_is_log_of_half_sigma():
    c = VE()(SIGMAS)
    torch.testing.assert_close(torch.exp(c.label) * 2, SIGMAS)
    assert torch.equal(c.c_out, SIGMAS)
    assert c.c_in.tolist() == c.c_skip.tolist() == [1] * len(SIGMAS)


def test_iddpm_levels_and_labels():
    levels = iddpm_levels(1000, 0.001, 0.008)
    # Entries 0, 500, 900, 999 and 1000 of the official buffer, which is summed up in float32.
    official = [20291.169921875, 1.0123889446258545, 0.16943570971488953, 0.006422337144613266, 0]
    assert [levels[j] for j in (0, 500, 900, 999, 1000)] == pytest.approx(official, rel=2e-3)
    iddpm = IDDPM(levels)
    assert (iddpm.sigma_max, iddpm.sigma_min) == (levels[0], levels[999])
    sigma = torch.tensor([levels[0], levels[500] * 1.0001, levels[999]])
    c = iddpm(sigma)
    assert c.label.tolist() == [999, 499, 0]
    torch.testing.assert_close(c.c_in**-2, sigma**2 + 1)
    assert torch.equal(c.c_out, -sigma)


def test_preconditioning_from_plain_data():
    assert preconditioning("iddpm", levels=[2.0, 1.0, 0.0]) == IDDPM((2.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="one of edm, vp, ve, iddpm, got 'x'"):
        preconditioning("x")
    with pytest.raises(ValueError, match=r"preconditioning ve.*'beta'"):
        preconditioning("ve", beta=1)


def attentive(net):
    return [name for name, each in net.model.named_modules() if getattr(each, "heads", 0)]


def test_attention_where_it_belongs():
    options = {"model_channels": 8, "channel_mult": [1, 1, 1], "num_blocks": 2}
    song = network("VPPrecond", {**DDPMPP, **options, "attn_resolutions": [8]}, 16)
    assert attentive(song) == ["enc.8x8_block0", "enc.8x8_block1", "dec.4x4_in0", "dec.8x8_block2"]
    wide = {**options, "model_channels": 64, "attn_resolutions": [8]}
    adm = network("EDMPrecond", wide, 16)
    blocks = [f"dec.8x8_block{k}" for k in range(3)]
    assert attentive(adm) == ["enc.8x8_block0", "enc.8x8_block1", "dec.4x4_in0", *blocks]


def test_heads_of_64_channels_or_one():
    adm = network("EDMPrecond", {**ADM, "channel_mult": [1, 3]})
    assert adm.model.dec["4x4_in0"].heads == 3
    assert network("VPPrecond", {**DDPMPP, **TINY}).model.dec["4x4_in0"].heads == 1


def test_class_labels():
    net = filled(network("EDMPrecond", ADM))
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0])
    both = net(x, sigma, torch.tensor([2, 1]))
    assert torch.equal(net(x, sigma, torch.eye(3)[[2, 1]]), both)
    assert torch.equal(net(x, sigma), net(x, sigma, torch.zeros(2, 3)))
    assert not torch.allclose(net(x, sigma), both)
    # Samples do not see each other.
    alone = net(x[1:], sigma[1:], torch.tensor([1]))
    torch.testing.assert_close(alone[0], both[1], atol=1e-4, rtol=1e-4)


def test_augment_labels():
    net = filled(network(*NETWORKS["ddpmpp"]))
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.0)
    assert torch.equal(net(x, sigma), net(x, sigma, augment_labels=torch.zeros(2, 9)))
    assert not torch.allclose(net(x, sigma), net(x, sigma, augment_labels=torch.ones(2, 9)))


def test_everything_is_float32():
    net = filled(network(*NETWORKS["skips"]))
    x, sigma = torch.randn(1, 3, 8, 8), torch.tensor([1.0])
    assert torch.equal(net(x.double(), sigma.double()), net(x, sigma))
    assert net(x.half(), sigma.half()).dtype == torch.float32


def test_attributes_and_config():
    net = network("EDMPrecond", {**ADM, "sigma_min": 0.002, "sigma_max": 80, "sigma_data": 0.4})
    assert (net.img_resolution, net.img_channels, net.label_dim) == (8, 3, 3)
    assert (net.sigma_min, net.sigma_max, net.sigma_data) == (0.002, 80, 0.4)
    assert json.loads(json.dumps(net.config)) == net.config
    assert EDMNetwork(net.config).config == net.config
    free = network("EDMPrecond", ADM)
    assert (free.sigma_min, free.sigma_max) == (0, math.inf)
    assert network("VEPrecond", {**NCSNPP, **TINY}).sigma_data is None


@pytest.mark.parametrize(
    ("x", "sigma", "labels", "message"),
    [
        ([1, 3, 8, 4], [1.0], None, r"x must be \[N, 3, 8, 8\], got \[1, 3, 8, 4\]"),
        ([3, 8, 8], [1.0], None, r"x must be"),
        ([2, 3, 8, 8], [1.0, 1.0, 1.0], None, r"sigma must be one number or \[2\], got \[3\]"),
        ([2, 3, 8, 8], [[1.0], [1.0]], None, "sigma must be one number"),
        ([1, 3, 8, 8], [0.0], None, "sigma must be positive and finite"),
        ([1, 3, 8, 8], [math.nan], None, "sigma must be positive and finite"),
        ([1, 3, 8, 8], [math.inf], None, "sigma must be positive and finite"),
        ([1, 3, 8, 8], [1.0], [3], r"class_labels must lie in 0\.\.2, got \[3\]"),
        ([1, 3, 8, 8], [1.0], [-1], "class_labels must lie in"),
        ([1, 3, 8, 8], [1.0], [1, 2], r"class_labels must be integers \[1\]"),
        ([1, 3, 8, 8], [1.0], [0.5], r"class_labels must be integers \[1\]"),
    ],
)
def test_bad_input_is_told(x, sigma, labels, message):
    net = network("EDMPrecond", ADM)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(x), torch.tensor(sigma), None if labels is None else torch.tensor(labels))


def test_labels_for_a_network_without_classes():
    net = network("VEPrecond", {**NCSNPP, **TINY})
    with pytest.raises(ValueError, match="without classes"):
        net(torch.zeros(1, 3, 8, 8), torch.tensor(1.0), torch.tensor([0]))


def test_unknown_choices_are_refused():
    config = network("VEPrecond", {**NCSNPP, **TINY}).config
    for key in ("encoder", "decoder", "embedding", "label_at", "decoder_attention"):
        with pytest.raises(ValueError, match=f"{key} must be one of .*, got 'odd'"):
            EDMNetwork({**config, "unet": {**config["unet"], key: "odd"}})
