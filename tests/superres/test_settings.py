"""No setting of torch changes a result of super-resolution: default device and dtype, grad mode,
deterministic algorithms. Each function and net is called plainly and under each of them."""


import pytest
import torch
from torch.utils._pytree import tree_flatten

from tests.settings import default_dtype, deterministic, meta_device
from vtlib.superres import bicubic, blur_down, degrade, luma, pretrained, psnr, ssim, ttvsr, warp
from vtlib.superres import catanet as cat
from vtlib.superres import uplift as up
from vtlib.superres.catanet import LRSA, TAB, CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import LTAM, TTVSR
from vtlib.superres.uplift import LocalAttender, UPLiFT

generator = torch.Generator("cpu").manual_seed(0)


def rand(*shape):
    return torch.rand(shape, generator=generator)


def randn(*shape):
    return torch.randn(shape, generator=generator)


IMAGES, OTHER, FLOW = rand(2, 3, 16, 24), rand(2, 3, 16, 24), randn(2, 2, 16, 24)
FRAMES, FLOWS = rand(1, 5, 3, 8, 12), (3 * randn(1, 4, 2, 8, 12), 3 * randn(1, 4, 2, 8, 12))
FEATURES, MAP = randn(2, 6, 4, 6), randn(2, 12, 9, 11)
TOKENS, CENTRES = randn(2, 21, 12), randn(5, 12)
torch.manual_seed(0)
FLOW_NET = SPyNet(3, (4, 4), 3).eval()
VIDEO = {
    "ttvsr": TTVSR(6, 1, 1, 4, keyframe_stride=2, spynet=None).eval(),
    "ttvsr, own flows": TTVSR(6, 1, 1, 4, spynet=FLOW_NET).eval(),
    "ttvsr, fractional": TTVSR(6, 1, 1, 4, location="fractional", spynet=None).eval(),
    "ttvsr, recurrent": TTVSR(6, 1, 1, 4, trajectories=False, spynet=None).eval(),
}
SMALL = dict(
    embed_dim=12, num_layers=2, qk_dim=8, mlp_dim=16, num_heads=2, patch_sizes=(8, 6),
    num_centres=(4, 6), group_sizes=(32, 24),
)
IMAGE_NET, BLOCK, LOCAL = CATANet(**SMALL).eval(), TAB(12, 8, 16, 2, 5, 8), LRSA(12, 8, 16, 2, 8)
UPLIFT = UPLiFT(6, 4, (4, 6), (8, 20)).eval()
GENERATIVE = UPLiFT(6, 4, (4, 6), (8, 20), norm="layer", noise_channels=2, refiner=(8,)).eval()
CROSS, ATTENDER, FUSION = CrossAttentionUpsampler(6, (4, 8), 12).eval(), LocalAttender(20), LTAM(6)


def seeded():
    return torch.Generator("cpu").manual_seed(1)


def backbone(images):
    return torch.nn.functional.avg_pool2d(torch.cat([images, images.square()], 1), 4)


def training_step(net, *inputs):
    """Loss, gradients and buffers after two steps of a copy of the net."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode(False), torch.enable_grad():
        net.train().zero_grad()
        losses = [net(*(x.clone() for x in inputs)).square().mean() for _ in range(2)]
        sum(losses).backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    buffers = [buffer.clone() for buffer in net.buffers()]
    net.eval().zero_grad()
    net.load_state_dict(before)
    return torch.stack(losses).detach(), gradients, buffers


def attended():
    keys = ttvsr.tokenize(randn_of(1, 1, 6, 8, 12))[:, :, None]
    location = ttvsr.identity_grid(1, 2, 3, device="cpu")[:, None]
    query = randn_of(2, 1, 6, 8, 12)
    return FUSION(query, keys, query, [keys] * 3, location, return_attn=True)


def randn_of(seed, *shape):
    fixed = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=fixed, device="cpu", dtype=torch.float32)


CALLS = {
    "bicubic, smaller": lambda: bicubic(IMAGES, 0.25),
    "bicubic, larger": lambda: bicubic(IMAGES, 3),
    "blur_down": lambda: (blur_down(IMAGES), blur_down(IMAGES, 2, 1.1, "duf")),
    "taps": lambda: (
        degrade.bicubic_taps(9, 1 / 3, "cpu"),
        degrade.blur_taps(9, 3, 1.6, "duf", "cpu"),
        degrade.keys_cubic(FLOW),
    ),
    "luma": lambda: luma(IMAGES),
    "psnr": lambda: (psnr(IMAGES, OTHER), psnr(IMAGES, OTHER, 2, y=False)),
    "ssim": lambda: (ssim(IMAGES, OTHER), ssim(IMAGES, OTHER, 2, y=False)),
    "warp": lambda: (warp(IMAGES, FLOW), warp(IMAGES, FLOW, "nearest", "zeros")),
    "spynet": lambda: (FLOW_NET(IMAGES[..., :13, :21], OTHER[..., :13, :21]),
                       FLOW_NET.levels_of(IMAGES, OTHER)),
    "spynet, training": lambda: training_step(FLOW_NET, IMAGES, OTHER),
    "maps": lambda: (
        ttvsr.identity_grid(2, 4, 6, device="cpu"),
        ttvsr.token_flow(FLOW),
        ttvsr.carry(IMAGES[:, :2], FLOW),
        ttvsr.carry(IMAGES[:, :2], FLOW, "fractional"),
        ttvsr.cross_scale_tokens(IMAGES),
    ),
    "attention along trajectories": attended,
    **{
        name: lambda net=net: net(FRAMES, None if net.spynet else FLOWS, return_trace=True)[0]
        for name, net in VIDEO.items()
    },
    "ttvsr, training": lambda: training_step(VIDEO["ttvsr, own flows"], FRAMES),
    "centres": lambda: (
        cat.assign(TOKENS, CENTRES), cat.first_centres(TOKENS, 4), cat.center_iter(TOKENS, CENTRES),
        cat.sorted_row(21, 8, "cpu")[0],
    ),
    "patches": lambda: cat.patch_reverse(cat.patch_divide(MAP, 6), (9, 11)),
    "TAB, LRSA": lambda: (BLOCK.eval()(MAP), LOCAL(MAP)),
    "catanet": lambda: [IMAGE_NET(IMAGES), *(
        (group.belong, group.order) for group in IMAGE_NET(IMAGES, return_groups=True)[1]
    )],
    "catanet, training": lambda: training_step(IMAGE_NET, IMAGES),
    "uplift": lambda: UPLIFT(IMAGES, FEATURES, size=(10, 14), return_attn=True),
    "uplift, training": lambda: training_step(UPLIFT, IMAGES, FEATURES),
    "uplift, generative": lambda: GENERATIVE(IMAGES, FEATURES, 2, generator=seeded()),
    "uplift, loss": lambda: up.loss_terms(
        UPLIFT, backbone, IMAGES[..., :16], 2, 0.1, generator=seeded()
    ),
    "attender": lambda: (ATTENDER(randn_of(3, 2, 20, 8, 12), FEATURES),
                         up.pool(randn_of(3, 2, 9, 8, 12), FEATURES, up.OFFSETS[9], low_mem=True)),
    "cross_attention": lambda: (CROSS(IMAGES, FEATURES, return_attn=True), CROSS(IMAGES, FEATURES)),
    "shipped": lambda: (
        pretrained.spynet_emoji()(IMAGES, OTHER),
        pretrained.catanet_small()(IMAGES),
        pretrained.ttvsr_small(location="fractional")(FRAMES),
        list(pretrained.uplift_emoji("cross").state_dict().values()),
    ),
}


SETTINGS = {
    "device": meta_device,
    "dtype": default_dtype,
    "half": lambda: default_dtype(torch.float16),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": deterministic,
}


def same(one, other):
    if not isinstance(one, torch.Tensor):
        return one == other
    alike = one.dtype == other.dtype and one.device == other.device
    return alike and torch.equal(one, other)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_settings_change_nothing(call):
    want, shape = tree_flatten(call())
    assert any(isinstance(value, torch.Tensor) for value in want)
    for name, setting in SETTINGS.items():
        with setting():
            got, found = tree_flatten(call())
        assert found == shape, name
        for one, other in zip(got, want, strict=True):
            assert same(one, other), name


def test_official_flow_weights_load_whatever_the_default_device():
    """The file lacks mean and std; what stands in for them must not land on the default device."""
    weights = {k: v for k, v in FLOW_NET.state_dict().items() if "basic_module" in k}
    net = SPyNet(3, (4, 4), 3).eval()
    with torch.device("meta"):
        net.load_state_dict(weights)
    assert torch.equal(net(IMAGES, OTHER), FLOW_NET(IMAGES, OTHER))
