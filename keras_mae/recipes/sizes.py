"""The encoders of the recipes: what pre-training and fine-tuning of one model must agree on."""

SIZES = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
    "digits": {
        "image_size": 28,
        "patch_size": 4,
        "channels": 1,
        "pixel_mean": (0.5,),
        "pixel_std": (0.5,),
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 4,
        "resize_size": 28,
    },
}
