"""Pre-training recipes (the paper's Table 8, with the official code's values, which are the ones that reproduce).

vit_base, vit_large, vit_huge: published. 800 epochs of ImageNet-1K at batch 4096, 128 TPU-v3 cores: 15.4 h for
ViT-L, 34.5 h for ViT-H (published, TensorFlow). Normalised-pixel loss of ViT-B late in training: about .42.

vit_tiny, vit_small: for small machines and small data; a narrower, shallower decoder and a higher base rate, since
small batches are the rule there and the rate falls with the batch.

digits: the demo's, for 28x28 grey images; 4,000 digits, about four minutes on two CPU cores (measured), held-out
error of plain pixels about .20. docs/demo.md has what it is worth in accuracy.
"""

import dataclasses

from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.sizes import SIZES

CHOICES = {
    "mask_kind": ("random", "block", "grid"),
    "target": ("pixels", "pca", "tokens"),
    "augmentation": ("none", "fixed_crop", "random_crop", "color_jitter"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """What pre-training adds.

    Attributes:
        decoder_embed_dim: width of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
        mask_ratio: share of the patches removed.
        mask_kind: how the removed patches lie; random, block or grid.
        encoder_mask_tokens: the encoder takes mask tokens for the removed patches too; slow, and worse.
        target: what the decoder predicts; pixels, pca or tokens.
        target_file: for target=pca the .npz of a fitted PCA, for target=tokens a saved tokenizer (.keras).
        norm_pix_loss: predict pixels normalised by their own patch; for target=pixels.
        loss_on_all_patches: average the loss over all patches instead of the removed ones.
        augmentation: none (the central crop), fixed_crop, random_crop or color_jitter (random crop and colour jitter).
            All but none obey flip; random crops obey min_area, the others resize_size.
    """

    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mask_ratio: float = 0.75
    mask_kind: str = "random"
    encoder_mask_tokens: bool = False
    target: str = "pixels"
    target_file: str | None = None
    norm_pix_loss: bool = True
    loss_on_all_patches: bool = False
    augmentation: str = "random_crop"

    def __post_init__(self):
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}. Received: {getattr(self, name)!r}")
        if (self.target == "pixels") != (self.target_file is None):
            raise ValueError(
                "target=pca and target=tokens need a target_file, and target=pixels takes none. "
                f"Received: target={self.target}, target_file={self.target_file}"
            )


SMALL_MACHINES = {
    "decoder_depth": 4,
    "batch_size": 256,
    "epochs": 200,
    "warmup_share": 0.05,
    "base_learning_rate": 1.5e-3,
}

PRETRAIN_RECIPES = {
    "vit_tiny": PretrainRecipe(**SIZES["vit_tiny"], **SMALL_MACHINES, decoder_embed_dim=128, decoder_num_heads=4),
    "vit_small": PretrainRecipe(**SIZES["vit_small"], **SMALL_MACHINES, decoder_embed_dim=256, decoder_num_heads=8),
    "vit_base": PretrainRecipe(**SIZES["vit_base"], warmup_epochs=40),
    "vit_large": PretrainRecipe(**SIZES["vit_large"], warmup_epochs=40),
    "vit_huge": PretrainRecipe(**SIZES["vit_huge"], warmup_epochs=40),
    "digits": PretrainRecipe(
        **SIZES["digits"],
        decoder_embed_dim=64,
        decoder_depth=1,
        decoder_num_heads=4,
        norm_pix_loss=False,
        batch_size=128,
        epochs=40,
        warmup_share=0.05,
        base_learning_rate=3e-3,
        min_area=0.5,
        flip=False,
        eval_every_epochs=10,
    ),
}
