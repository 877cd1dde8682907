"""One call, one drawing of a method: `teach.drawings.vit()`. No arguments; shapes are those of the
notebooks' small models.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".basics": ("pruning", "vit"),
    ".multiscale": (
        "crossformer", "crossformer_cel", "crossformer_groups", "crossvit", "crossvit_exchange",
        "tokenformer", "tokenformer_pattention",
    ),
    ".reducing": ("aim", "crossget", "recoverable", "transprune", "visiondrop"),
    ".segmentation_expedit": ("expedit",),
    ".selecting": ("divprune", "fastervlm", "fastv", "hiprune", "holov", "zooprune"),
    ".segmentation_one_model": ("oneformer",),
    ".superres": (
        "catanet", "catanet_groups", "catanet_tab", "ttvsr", "ttvsr_step", "uplift",
        "uplift_neighbours", "uplift_step",
    ),
    ".segmentation_camouflage": ("camouflage",),
    ".segmentation_scale": ("caswit", "vwformer"),
    ".segmentation_zero_shot": ("split_matching",),
    ".tokenizers_judging": ("tokbench",),
    ".tokenizers_vq": ("tokenflow", "vq_autoencoder"),
    ".tokenizers_bridge": ("ett", "tokenbridge", "tokenbridge_head"),
    ".tokenizers_glotok": ("glotok", "glotok_histogram"),
    ".tokenizers_one_dimension": ("gigatok", "retok"),
    ".tokenizers_hierarchies": ("har", "hieratok", "restok"),
})
