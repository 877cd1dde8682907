"""Images to tokens and back: visual tokenizers, and how to judge them."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".autoencoder": ("Autoencoder", "ViTDecoder", "ViTEncoder", "small"),
    ".base": ("Reconstruction", "Tokenizer"),
    ".ett": ("ETT", "caption_loss"),
    ".ibq": ("IBQTokenizer",),
    ".hieratok": ("HieraTok", "ScaleDecoder", "attended_pairs", "pool_scales", "scale_causal_mask"),
    ".hieratok_smoothness": ("roughness",),
    ".reader": ("TemplateReader",),
    ".gigatok": ("GigaTok", "gigatok_b_l", "gigatok_s_b", "gigatok_s_s", "gigatok_xl_xxl"),
    ".retok": ("ReToK", "retok_s_b", "retok_s_s"),
    ".glotok": ("DualCodebook", "GloTok"),
    ".glotok_histogram": (
        "histogram_loss", "soft_histogram", "teacher_centres", "teacher_histogram",
    ),
    ".glotok_uniformity": ("Uniformity", "uniformity"),
    ".restok": ("ResTok",),
    ".restok_har": ("HAR",),
    ".teacher": ("Teacher", "course_teacher"),
    ".tokbench": ("Faces", "Words", "refine", "score_faces", "score_text"),
    ".tokbench_world": ("face_embedding", "face_pictures", "word_pictures"),
    ".tokenbridge": ("TokenBridge", "frequency_order", "inverse_order", "standardisation"),
    ".tokenbridge_generator": ("MaskedGenerator",),
    ".tokenbridge_head": ("DimensionHead",),
    ".tokenflow": ("SharedMapping", "SharedScales", "TokenFlow", "VisionTower", "semantic_loss"),
    ".tokenflow_generate": ("num_passes", "sample_scales", "scale_input"),
})
