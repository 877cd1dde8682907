"""A class for every pixel: decoders of many scales, masks, how far a pixel sees, and large encoders
made cheaper."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".average_precision": ("AveragePrecision",),
    ".boundary": ("boundary_iou",),
    ".camouflage": (
        "CIN", "MSFF", "CamouflageSegmenter", "aggregate", "camouflage_loss", "foreground",
        "standardise",
    ),
    ".camouflage_masks": ("MaskDecoder", "PixelDecoder"),
    ".camouflage_vocabulary": ("MaskEmbedding", "OpenVocabulary", "pool_masks"),
    ".caswit": ("CASWiT", "CrossScaleFusion", "caswit_loss"),
    ".caswit_context": ("cut", "cut_labels", "slide"),
    ".caswit_cost": ("forward_cost", "stage_tokens"),
    ".caswit_pretraining": ("MaskedPretraining",),
    ".expedit": (
        "Expedit", "Pooling", "cluster", "clustering_cost", "encoder_cost", "nearest_centres",
        "reconstruct", "reconstruction_weights",
    ),
    ".expedit_sam": ("SAMEncoder", "sam_vit_h", "sam_vit_l"),
    ".expedit_windows": ("cluster_windows", "resize_bias_table"),
    ".conv_module": ("ConvModule", "PixelLinear"),
    ".cross_entropy": ("pixel_cross_entropy",),
    ".far_cue": ("ScaleNet", "far_cues"),
    ".heads": ("ASPPHead", "ConvHead", "MLPHead", "UPerHead"),
    ".linear_segmenter": ("LinearSegmenter",),
    ".losses": ("class_loss", "mask_losses", "sample_points", "uncertain_points"),
    ".matching": ("Match", "assign", "match", "match_cost"),
    ".measures": ("MeanIoU", "PanopticQuality", "segments"),
    ".receptive_field": ("effective_receptive_field", "reach"),
    ".segmenter": ("Segmenter",),
    ".split_matching": (
        "MultiScaleEnhancement", "SplitMatching", "candidate_cost", "split_loss", "split_match",
    ),
    ".split_matching_masks": (
        "Regions", "farthest_seeds", "kmeans", "partition", "pseudo_masks", "region_means",
        "region_tokens", "window_seeds",
    ),
    ".swin": ("Swin",),
    ".vwformer": (
        "VWA", "VWHead", "context_windows", "copy_shift_padding", "fold", "merge_windows",
        "query_windows",
    ),
    ".vwformer_city": ("MultiheadVWA", "VWCityHead"),
    ".vwformer_cost": ("context_positions", "multiply_adds"),
    ".oneformer": ("OneFormer", "Predictor", "contrastive_loss"),
    ".oneformer_loss": ("joint_loss",),
    ".oneformer_nets": ("ConvPyramid",),
    ".oneformer_tasks": ("instances", "panoptic_segments", "semantic_scores", "task_targets"),
    ".oneformer_text": (
        "TextEncoder", "TextMapper", "WordTokenizer", "draw_task", "task_ids", "text_list",
    ),
    ".oneformer_weights": ("convert_official", "convert_transformers", "to_transformers"),
    ".zero_shot": ("FeatureScenes", "SeenTargets", "annotate", "feature_scenes", "seen_targets"),
})
