"""How pixels are shifted and scaled for networks that were trained on ImageNet's photographs."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, in [0, 1]."""
