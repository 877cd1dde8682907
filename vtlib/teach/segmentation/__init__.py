"""Pictures, measurements and widgets of the segmentation notebooks.

    from vtlib.teach import segmentation

    segmentation.scale.window_panel(pictures).show()      # a query window and its context
    segmentation.scale.context_panel(net, crops, contexts).show()
    segmentation.hourglass_panel(net, pictures, alt, taus, tau).show()      # fewer tokens
    segmentation.one_model.task_switch(model, images, codes).show()

Drawings return a Figure for `teach.show`, or draw on the axes they get.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".camouflage": ("contrast_panel", "iou", "surest"),
    ".hourglasses": (
        "agreement", "cluster_picture", "hourglass_panel", "mask_picture", "masks_of",
        "neighbour_cosines", "owners", "saliency_panel", "score_curves",
    ),
    ".one_model": ("query_viewer", "task_switch"),
    ".scale": ("colour_cells", "context_panel", "painted", "window_panel"),
    ".zero_shot": ("coloured", "lit", "map_row", "matching_panel", "query_panel", "regions"),
})
