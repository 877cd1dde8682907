"""What `measure` asks: a checkpoint, pictures, questions, and the prompts its processor makes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

QUESTIONS = (
    "What is in the middle of the picture? Answer in a few words.",
    "Which colours do you see?",
    "Describe the picture in one sentence.",
)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")


def load(
    name: str, device: str | None = None, dtype: str = "auto", device_map: Any = None
) -> tuple[Any, Any]:
    """(model, processor) of a folder or a name on the hub.

    Args:
        name: what `from_pretrained` takes.
        device: where the model goes; None: the GPU if there is one.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        device_map: given to transformers, which needs accelerate for it; then `device` is not used.

    ValueError where transformers cannot make the processor.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import is_torchvision_available

    try:
        processor = AutoProcessor.from_pretrained(name)
    except (AttributeError, ImportError) as error:
        if is_torchvision_available():
            raise
        raise ValueError(
            f"the processor of {name} cannot be made without torchvision ({error}): "
            "pip install torchvision, of the build that fits your torch"
        ) from error
    model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, device_map=device_map)
    if device_map is None:
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model.eval(), processor


def pictures(folder: Path | None = None) -> dict[str, Any]:
    """Pictures (PIL) of a folder by file name; None: the package's own photographs.

    ValueError for a folder without any.
    """
    from transformers.image_transforms import to_pil_image
    from transformers.image_utils import load_image

    if folder is None:
        from ..data import photographs

        return {name: to_pil_image(picture) for name, picture in photographs().items()}
    files = [file for file in sorted(Path(folder).glob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"pictures={folder}: there is no picture ({', '.join(SUFFIXES)})")
    return {file.name: load_image(str(file)) for file in files}


def questions(file: Path | None, names: Sequence[str]) -> list[tuple[str, str]]:
    """(picture, question) pairs of a file with a JSON object a line, {"question": ...}.

    With "picture": a name, it is asked of that picture alone. None: QUESTIONS, of all pictures.
    ValueError for a line that is neither and for a picture that there is not.
    """
    asked = [{"question": question} for question in QUESTIONS]
    if file is not None:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        asked = [_question(line, f"{file}, line {i + 1}") for i, line in enumerate(lines) if line]
    pairs = []
    for entry in asked:
        wanted = [entry["picture"]] if "picture" in entry else names
        if not set(wanted) <= set(names):
            raise ValueError(f"questions: there is no picture {wanted[0]!r}")
        pairs += [(name, entry["question"]) for name in wanted]
    return pairs


def _question(line: str, where: str) -> dict[str, str]:
    needs = f'{where}: needs {{"question": "...", "picture": "name of its file"}}'
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(needs) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
        raise ValueError(needs)
    return entry


def prompt(processor: Any, picture: Any, question: str) -> Any:
    """What the processor makes of a picture and a question: by its chat template if it has one,
    else in LLaVA 1.5's words.

    Args:
        processor: of `load`.
        picture: PIL.
        question: about it.
    """
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    token = getattr(processor, "image_token", "<image>")
    text = f"USER: {token}\n{question} ASSISTANT:"
    return processor(images=[picture], text=[text], return_tensors="pt")
