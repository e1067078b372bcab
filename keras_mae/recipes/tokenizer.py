"""Recipes for training the tokenizer of the dVAE token target (Table 1d; arXiv 2102.12092, Appendix A.2).

dvae: DALL-E's sizes, batch, rates and schedules, at 112 pixels, which is what the target shows the tokenizer of 224
(DALL-E's own: 256 pixels). 100 epochs of ImageNet-1K are 250,000 updates, of which the temperature falls over 150,000
and the KL weight grows over 5,000, as published; DALL-E trained for 3 million updates on 250 million images
(published).

dvae_small: for small machines and small data.
"""

import dataclasses
import math
from typing import ClassVar

from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.provenance import Provenance

DOWNSAMPLING = 8  # pixels to a code, each way


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(Recipe):
    """What training a discrete VAE adds; the fields of the ViT, which it does not have, are taken away.

    Attributes:
        num_codes: size of the vocabulary.
        hidden_dim: width of the encoder's first and the decoder's last group, a multiple of 4.
        blocks_per_group: residual blocks in each of the four groups of encoder and decoder.
        code_dim: width of a code's embedding in the decoder.
        temperature: of the Gumbel-softmax relaxation, at the start.
        min_temperature: reached on half a cosine.
        temperature_share: share of the run (0..1) after which the temperature is at its minimum.
        kl_weight: of the divergence from equally likely codes, on DALL-E's scale.
        kl_warmup_share: share of the run (0..1) over which the KL weight grows from 0.
    """

    command: ClassVar[str] = "pretrain_tokenizer"
    patch_size: ClassVar[None] = None
    pixel_mean: ClassVar[None] = None
    pixel_std: ClassVar[None] = None
    embed_dim: ClassVar[None] = None
    depth: ClassVar[None] = None
    num_heads: ClassVar[None] = None
    remat: ClassVar[None] = None

    image_size: int | tuple[int, int] = 112
    beta_2: float = 0.999
    num_codes: int = 8192
    hidden_dim: int = 256
    blocks_per_group: int = 2
    code_dim: int = 128
    temperature: float = 1.0
    min_temperature: float = 1 / 16
    temperature_share: float = 0.6
    kl_weight: float = 6.6
    kl_warmup_share: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        sides = (self.image_size,) if isinstance(self.image_size, int) else self.image_size
        if any(side < DOWNSAMPLING or side % DOWNSAMPLING for side in sides):
            raise ValueError(f"image_size must be a multiple of {DOWNSAMPLING} pixels. Received: {self.image_size}")
        if self.hidden_dim < 4 or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim must be a multiple of 4. Received: {self.hidden_dim}")
        if self.num_codes < 2:
            raise ValueError(f"num_codes must be at least 2. Received: {self.num_codes}")
        for name in ("blocks_per_group", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Received: {getattr(self, name)}")
        if not 0 < self.min_temperature <= self.temperature < math.inf:
            raise ValueError(
                "The temperature must stay above 0 and may not grow. "
                f"Received: temperature={self.temperature}, min_temperature={self.min_temperature}"
            )
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be at least 0. Received: {self.kl_weight}")
        for name in ("temperature_share", "kl_warmup_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be at least 0 and at most 1. Received: {getattr(self, name)}")


TOKENIZER_RECIPES = {
    "dvae_small": TokenizerRecipe(
        num_codes=1024,
        hidden_dim=64,
        code_dim=64,
        batch_size=64,
        epochs=100,
        warmup_share=0.02,
        base_learning_rate=4e-3,
        weight_decay=1e-4,
    ),
    "dvae": TokenizerRecipe(
        batch_size=512,
        epochs=100,
        warmup_share=0.0,
        base_learning_rate=5e-5,  # 1e-4 at batch 512
        min_learning_rate=1.25e-6,
        weight_decay=1e-4,
    ),
}

COMMAND = "python -m keras_mae.pretrain_tokenizer --data=SHARDS --run_dir=RUN --recipe="

TOKENIZER_NOTES = {
    "dvae_small": Provenance(COMMAND + "dvae_small", "one small machine", "-", "not measured"),
    "dvae": Provenance(COMMAND + "dvae", "-", "-", "not measured"),
}
