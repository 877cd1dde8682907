"""Drawings, measurements and widgets of the notebooks on visual tokenizers.

    from vtlib.teach import tokenizers

    tokenizers.as_numbers(picture, indices, back)      # a picture, its tokens, the picture of these
    tokenizers.codebook_panel(fit, training, pictures, alt=...).show()
    tokenizers.bins_figure(edges, means)                # a Gaussian, its bins and their values
    tokenizers.levels_panel(autoencoder, pictures, alt=...).show()
    tokenizers.histogram_panel(recorded, teacher, every).show()
    tokenizers.kept_panel(restok, pictures, alt=...).show()
    tokenizers.judging.readings(crops, written, read, titles)   # what was read, wrong letters red

Drawings return a Figure for `teach.show`, or draw on the axes they get.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".codes": ("as_numbers", "code_maps", "latent_planes", "lloyd_rounds", "patch_rows",
               "staircase"),
    ".judging": ("JPEG", "at_decibels", "blurred", "file_bits", "ranking", "rates", "reading_panel",
                 "readings", "tiled", "word_grid"),
    ".trials": ("by_scales", "convolutions", "explained", "factors", "health_figure",
                "probe_indices", "report", "shuffled"),
    ".vq_panels": ("around", "codebook_panel", "index_panel"),
    ".bridge": ("bins_figure", "densities", "joint", "lloyd"),
    ".bridge_panels": ("head_panel", "levels_panel"),
    ".histograms": ("bumps", "circles", "compared", "histogram_panel", "in_use",
                    "nearest_cosine", "nearest_patches", "on_plane", "patch_classes",
                    "patch_with_surroundings", "scenes_and_photographs", "stored"),
    ".one_dimension": ("LOOKS", "prefix_panel", "region_pictures", "regions_of", "swap_panel"),
    ".hierarchies": ("enlarged", "mask_figure", "number_maps"),
    ".hierarchy_panels": ("kept_panel", "order_panel", "scale_panel", "sight_panel",
                          "side_by_side"),
    ".tuning": ("Tuned", "alpha_panel", "drift", "record"),
})
