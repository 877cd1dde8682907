"""Split Matching in pictures: maps of classes, cost matrices with their pairs, and the widget."""

from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vtlib.segmentation.matching import assign, match_cost
from vtlib.segmentation.split_matching import SplitMatching, candidate_cost
from vtlib.segmentation.split_matching_masks import Regions, partition
from vtlib.segmentation.zero_shot import UNANNOTATED, FeatureScenes, SeenTargets
from vtlib.teach.figures import PALETTE, STYLE, figure
from vtlib.teach.pictures import image
from vtlib.teach.widgets import Panel, panel

EXTRA = ("#882255", "#44AA99")
COLOURS = (*PALETTE[:6], *EXTRA)
"""Of the classes; the two unseen ones are the last two."""
NOBODY = "#D9D9D9"
"""Where nobody annotated."""


def coloured(labels: Tensor, colours: Sequence[str] = COLOURS) -> Tensor:
    """A map of classes (h, w) as a picture (3, h, w); grey: no class.

    Args:
        labels: (h, w) int64, 255 for no class.
        colours: one a class.
    """
    table = torch.tensor([matplotlib.colors.to_rgb(colour) for colour in (*colours, NOBODY)])
    return table[labels.where(labels != UNANNOTATED, len(colours))].movedim(-1, 0)


def regions(labels: Tensor) -> Tensor:
    """Clusters (h, w) as a picture: a colour each, in turn, that means no class."""
    tints = torch.tensor([matplotlib.colors.to_rgb(c) for c in (
        "#F7D4D4", "#CFE0F5", "#D9EFD0", "#F9ECC4", "#E6D6F0", "#CDEDEA", "#EBD9C8", "#E0E0E0",
    )])
    return tints[labels % len(tints)].movedim(-1, 0)


@matplotlib.rc_context(STYLE)
def map_row(maps: Mapping[str, Tensor], title: str | None = None) -> Figure:
    """Small pictures (3, h, w) side by side, each pixel a square.

    Args:
        maps: {title: picture}.
        title: the message.
    """
    fig, _ = figure(len(maps), size=(1.75 * len(maps), 2.2 if title else 2.0), layout="pictures")
    for ax, (name, picture) in zip(fig.axes, maps.items(), strict=True):
        image(ax, picture, name)
    if title:
        fig.suptitle(title, fontsize=9.5, x=0.02, ha="left")
    fig.subplots_adjust(left=0.01, right=0.99, top=0.76 if title else 0.86, bottom=0.02)
    return fig


def draw_costs(
    ax: Axes,
    costs: Tensor,
    pairs: Sequence[tuple[int, int]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> None:
    """A cost matrix with its numbers; a frame around each chosen pair.

    Args:
        ax: matplotlib Axes.
        costs: (queries, targets); NaN: never compared, grey.
        pairs: (row, column) of the chosen ones.
        rows: names of the queries.
        columns: names of the targets.
        title: above it.
    """
    shown = costs.masked_fill(costs.isnan(), 0)
    ax.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=1.6 * float(shown.max()) + 1e-6,
              aspect="auto")
    for row in range(costs.shape[0]):
        for column in range(costs.shape[1]):
            cost = costs[row, column].item()
            if cost != cost:
                ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=NOBODY))
                continue
            ax.text(column, row, f"{cost:.1f}", ha="center", va="center", fontsize=7.5)
    for row, column in pairs:
        ax.add_patch(Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, fill=False,
                               edgecolor=PALETTE[1], linewidth=2.2))
    ax.set_xticks(range(len(columns)), columns, fontsize=7.5)
    ax.set_yticks(range(len(rows)), rows, fontsize=7.5)
    ax.tick_params(length=0)
    ax.set_title(title)


@torch.no_grad()
def all_costs(
    model: SplitMatching, scenes: FeatureScenes, target: SeenTargets, region: Regions,
    seen: Sequence[int], scene: int,
) -> Tensor:
    """Cost of every query for every labelled mask, then for every pseudo mask, (Q, T + U).

    Args:
        model: trained.
        scenes: where the scene is.
        target: its labelled masks.
        region: its pseudo masks.
        seen: numbers of the seen classes.
        scene: which.
    """
    found = model(scenes.features[scene : scene + 1])[-1]
    c, logits = found.embeddings[0], found.mask_logits[0].flatten(1)
    classes = model.class_logits(c[None], scenes.text[list(seen)])[0]
    labelled = match_cost(classes, logits, target.labels, target.masks.flatten(1).float())
    pseudo = candidate_cost(c, logits, region.embeddings, region.masks.flatten(1).float())
    return torch.cat([labelled, pseudo], dim=1)


def paired(costs: Tensor) -> list[tuple[int, int]]:
    """The pairs of the smallest summed cost."""
    return list(zip(*(numbers.tolist() for numbers in assign(costs)), strict=True))


def matching_panel(
    model: SplitMatching, scenes: FeatureScenes, targets: Sequence[SeenTargets],
    regions_of: Sequence[Regions], seen: Sequence[int], alt: str, scene: int = 0, most: int = 6,
) -> Panel:
    """The widget "who learns from what": controls scene, matching.

    Args:
        model: trained.
        scenes: of the test.
        targets: labelled masks of each.
        regions_of: pseudo masks of each.
        seen: numbers of the seen classes.
        alt: what the first frame shows.
        scene: at first.
        most: pseudo masks that are shown, the largest.
    """
    first, hidden = model.num_seen, scenes.labels.clone()
    hidden[~torch.isin(hidden, torch.tensor(seen))] = UNANNOTATED

    def draw(scene: int, matching: str) -> Figure:
        target, region = targets[scene], regions_of[scene]
        largest = region.masks.sum((1, 2)).argsort(descending=True)[:most]
        region = Regions(region.embeddings[largest], region.masks[largest])
        costs = all_costs(model, scenes, target, region, seen, scene)
        labels = len(target.labels)
        if matching == "two":
            costs[:first, labels:] = torch.nan
            costs[first:, :labels] = torch.nan
            pairs = paired(costs[:first, :labels])
            pairs += [(q + first, t + labels) for q, t in paired(costs[first:, labels:])]
        else:
            pairs = paired(costs)
        fig, axes = figure(2, size=(7.4, 3.4), width_ratios=(1, 2.4))
        fig.subplots_adjust(left=0.01, right=0.99, top=0.92, bottom=0.12, wspace=0.3)
        image(axes[0], coloured(hidden[scene]), "annotated\n(grey: nobody)")
        rows = [f"seen {q}" if q < first else f"candidate {q}" for q in range(len(costs))]
        columns = [f"label\n{t}" for t in range(labels)]
        columns += [f"pseudo\n{t}" for t in range(len(largest))]
        title = "one matching" if matching == "one" else "two matchings: grey is never compared"
        draw_costs(axes[1], costs, pairs, rows, columns, title)
        return fig

    return panel(
        draw,
        alt=alt,
        scene=ipywidgets.IntSlider(scene, min=0, max=len(scenes.labels) - 1, description="scene"),
        matching=ipywidgets.Dropdown(options=["two", "one"], description="matchings"),
    )


def lit(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture (3, H, W), dark outside of a mask (h, w) of places."""
    factor = picture.shape[-1] // mask.shape[-1]
    large = mask.float().repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return picture * (0.2 + 0.8 * large)


def query_panel(
    model: SplitMatching, scenes: FeatureScenes, images: Tensor, names: Sequence[str],
    seen: Sequence[int], alt: str, scene: int = 0, query: int = 6,
) -> Panel:
    """The widget "what a query holds": controls picture, query, window.

    Args:
        model: the one for pictures.
        scenes: features, classes and texts of the pictures.
        images: (B, 3, H, W).
        names: of all classes.
        seen: numbers of the seen ones.
        alt: what the first frame shows.
        scene: picture at first.
        query: at first.
    """
    with torch.no_grad():
        found = model(scenes.features)[-1]
        cosine, best = (found.embeddings @ scenes.text.mT).max(-1)               # b q
        masks, answer = found.mask_logits > 0, model.scores(found, scenes.text).argmax(1)
    windows = (2, 3, 4)
    parts = {window: partition(scenes.features, window) for window in windows}
    known = torch.isin(scenes.labels, torch.tensor(seen))
    objects = scenes.labels != UNANNOTATED

    def draw(picture: int, query: int, window: int) -> Figure:
        fig, axes = figure(5, size=(9.0, 2.35), layout="pictures")
        image(axes[0], images[picture], "the picture")
        image(axes[1], lit(images[picture], known[picture]), "labelled in training")
        image(axes[2], regions(parts[window][picture]), f"clusters, window {window}")
        group = "seen" if query < model.num_seen else "candidate"
        title = f"query {query}, {group}:\n{names[best[picture, query]]}"
        title += f" {cosine[picture, query]:.2f}"
        image(axes[3], lit(images[picture], masks[picture, query]), title)
        there = objects[picture]
        right = (answer[picture] == scenes.labels[picture])[there].float().mean()
        image(axes[4], lit(images[picture], there & (answer[picture] == scenes.labels[picture])),
              f"named right:\n{right:.0%} of objects")
        return fig

    last = model.num_seen + model.num_candidates - 1
    return panel(
        draw,
        alt=alt,
        picture=ipywidgets.IntSlider(scene, min=0, max=len(images) - 1, description="picture"),
        query=ipywidgets.IntSlider(query, min=0, max=last, description="query"),
        window=ipywidgets.SelectionSlider(options=windows, value=3, description="window"),
    )
