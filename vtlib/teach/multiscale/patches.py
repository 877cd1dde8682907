"""One patch size does not serve all: a scene, a photograph, and what a patch of each size holds."""

from collections.abc import Mapping, Sequence

from einops import rearrange
from torch import Tensor

from vtlib import data
from vtlib.nn.checks import check_images, check_ints
from vtlib.teach.figures import figure, show
from vtlib.teach.pictures import image, lines, overlay


def unequal_scene(seed: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """A scene of EmojiWorld with two objects of very unequal size: (image, masks).

    image: (3, 96, 96); masks: {name: (96, 96) of 0.0 and 1.0}, the tiny object first. Of 64 scenes
    the one is chosen whose objects differ most.
    """
    world = data.EmojiWorld(96, "test", pictograms=list(data.EASY))
    scenes = world.scenes(64, seed=seed, objects=2, scale=(0.08, 0.75), occlusion="none")
    ratio = scenes.scale.amax(dim=1) / scenes.scale.amin(dim=1)
    chosen = int(ratio.argmax())
    masks = {}
    for slot in scenes.scale[chosen].argsort().tolist():
        name = scenes.classes[int(scenes.pictogram[chosen, slot])]
        masks[name] = scenes.masks[chosen, slot].float()
    return scenes.images[chosen], masks


def show_cuts(picture: Tensor, patches: Sequence[int]) -> None:
    """The same picture under the borders of several patch sizes, the number of tokens above each.

    picture: (3, S, S); patches: sides in pixels.
    """
    check_images(picture[None], 3)
    patches = check_ints(patches, "patches", 1)
    fig, axes = figure(len(patches), layout="pictures", squeeze=False)
    counts = [(picture.shape[-1] // side) ** 2 for side in patches]
    for ax, side, count in zip(axes[0], patches, counts, strict=True):
        image(ax, picture, f"P = {side}: {count} tokens")
        lines(ax, side)
    said = " and ".join(f"into {count} patches" for count in counts)
    show(fig, alt=f"The same picture, cut {said}.")


def show_shares(patches: Sequence[int], shares: Mapping[str, Sequence[float]], title: str) -> None:
    """What the best patch holds, against its side: one curve a question.

    Args:
        patches: sides in pixels.
        shares: {what the curve says: one number from 0 to 1 a side}.
        title: the message.
    """
    fig, ax = figure(size=(5.4, 2.9))
    for mark, (label, values) in zip(("o-", "s--", "^:"), shares.items(), strict=False):
        ax.plot(patches, [float(value) for value in values], mark, label=label)
    ax.set(title=title, xlabel="patch side P (pixels)", ylabel="share", xticks=patches)
    ax.set_ylim(0, 1.05)
    ax.legend(loc="upper right")
    said = [
        f"{label}: from {float(values[0]):.2f} at P = {patches[0]} to {float(values[-1]):.2f} at"
        f" P = {patches[-1]}" for label, values in shares.items()
    ]
    show(fig, alt=f"Two curves against the side of a patch. {'; '.join(said)}.")


def show_spread(photo: Tensor, patches: Sequence[int], flat: float = 0.02, busy: float = 0.15):
    """A photograph, and how much the pixels of each patch differ, for several patch sizes.

    How much: the standard deviation of their brightness.

    Args:
        photo: (3, S, S).
        patches: sides in pixels.
        flat: below it a patch counts as flat.
        busy: above it a patch counts as busy.
    """
    check_images(photo[None], 3)
    patches, grey, said = check_ints(patches, "patches", 1), photo.mean(dim=0), []
    fig, axes = figure(1 + len(patches), layout="pictures")
    image(axes[0], photo, f"{photo.shape[-1]} x {photo.shape[-2]} pixels")
    for ax, side in zip(axes[1:], patches, strict=True):
        spread = rearrange(grey, "(h p) (w q) -> h w (p q)", p=side, q=side).std(dim=-1)
        low, high = (spread < flat).float().mean().item(), (spread > busy).float().mean().item()
        shares = f"P = {side}: {low:.0%} flat, {high:.0%} busy"
        overlay(ax, photo, spread, mode="nearest", vmin=0, vmax=0.2, title=shares)
        said.append(shares)
    show(fig, alt="A photograph, and how much the pixels of each of its patches differ: dark means"
                  f" hardly, bright a lot. {'; '.join(said)}.")
