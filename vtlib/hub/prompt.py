"""The images of a prompt of transformers' LLaVA and Qwen2.5-VL: what was read of them, and where their tokens stand."""

import torch


class Seen:
    """What was read of some images: found, as `encoders` gives it; inputs: the arguments it was read from."""

    def __init__(self, found, inputs):
        self.found, self.inputs, self.kept = found, inputs, {}

    def tokens(self):
        """One (N, D) an image, projected and unpruned; `order` knows them again."""
        self.kept = {image: tokens for images, vision in self.found for image, tokens in zip(images, vision.tokens)}
        return [self.kept[image] for image in sorted(self.kept)]

    def order(self, tokens):
        """The images that a list of `tokens` is of; `generate` repeats entries for beams."""
        known = {id(t): image for image, t in self.kept.items()}
        if any(id(t) not in known for t in tokens):
            raise ValueError("mm_encoder_outputs was changed since get_image_features made it: pass pixel_values")
        return [known[id(t)] for t in tokens]


def places(placeholder, found, order):
    """Where images stand: placeholder (B, S) bool, found as `encoders` gives it, order: the image behind each block of
    placeholders.

    For each entry of `found`: (numbers of the images in the prompts, vision, which of vision's images (M,), row (M,),
    places (M, N)). ValueError for too many or too few placeholders, and for an image's that are spread over two prompts.
    """
    flat = placeholder.flatten().nonzero()[:, 0]
    sizes = {image: vision.features.shape[1] for images, vision in found for image in images}
    ends = torch.tensor([0, *(sizes[image] for image in order)]).cumsum(0).tolist()
    if len(flat) != ends[-1]:
        raise ValueError(f"input_ids has {len(flat)} placeholders of images, but the {len(order)} images in pixel_values "
                         f"have {ends[-1]} tokens")
    for images, vision in found:
        here = [(start, image) for start, image in zip(ends, order) if image in images]
        start = torch.tensor([s for s, _ in here], device=flat.device)[:, None]
        at = flat[start + torch.arange(sizes[images[0]], device=flat.device)]                   # m n
        row, place = at // placeholder.shape[1], at % placeholder.shape[1]
        if (row != row[:, :1]).any():
            raise ValueError("input_ids: the placeholders of an image are spread over two prompts of the batch")
        which = torch.tensor([images.index(image) for _, image in here], device=flat.device)
        yield [image for _, image in here], vision, which, row[:, 0], place


def check_even(images, stay):
    """ValueError unless all prompts keep equally many tokens and images their blocks: images (`cuts.Images`), stay (B, S)."""
    left = stay.sum(dim=1)
    if (left != left[0]).any() or any((group.places < 0).any() for group in images):
        raise ValueError(f"prompts of {left.tolist()} tokens in a batch: cuts inside the decoder need equally many images "
                         "in each, and no empty slots")
    for group in images:
        if (group.places.diff(dim=1) != 1).any():
            raise ValueError("input_ids: the placeholders of an image must be neighbours")
