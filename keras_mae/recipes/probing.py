"""Linear-probe recipes (the paper's Table 10): a linear classifier on the frozen class token, with LARS.

The class token goes through a BatchNorm without scale and offset. Images are cropped without a second try (the
pipeline's view `probe`), area .08 to 1, and mirrored: no other augmentation.

vit_base, vit_large, vit_huge: the official code's; for L and H 50 epochs suffice there.

vit_large_paper, vit_huge_paper: 90 epochs, as the paper prints for all sizes. (That of B is `vit_base`.)

vit_tiny, vit_small, digits: for small machines and small data: the published peak rate, 6.4, at a smaller batch. LARS
scales each step by the norm of weights and gradients, so that at a lower rate a short run would hardly move them.
"""

import dataclasses
import math
from typing import ClassVar

from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.provenance import Provenance
from keras_mae.recipes.sizes import SIZES

POOLS = ("class_token", "patch_mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe(Recipe):
    """What a linear probe has; AdamW's fields, which LARS does not have, are taken away.

    Attributes:
        pool: what the head sees: class_token, or patch_mean of the other tokens.
        cache_features: run the encoder once over the images, as evaluation sees them: no random crops, no mirroring.
        momentum: of LARS.
        trust_coefficient: of LARS: factor on the ratio of the norms of weights and gradient.
    """

    command: ClassVar[str] = "linear_probe"
    beta_1: ClassVar[None] = None
    beta_2: ClassVar[None] = None

    batch_size: int = 16384
    epochs: float = 90.0
    base_learning_rate: float = 0.1
    weight_decay: float = 0.0
    min_area: float = 0.08
    pool: str = "class_token"
    cache_features: bool = False
    momentum: float = 0.9
    trust_coefficient: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}. Received: {self.pool}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1. Received: {self.momentum}")
        if not 0 < self.trust_coefficient < math.inf:
            raise ValueError(f"trust_coefficient must be above 0. Received: {self.trust_coefficient}")


SMALL_MACHINES = {"batch_size": 512, "warmup_share": 0.1, "base_learning_rate": 3.2}  # 3.2 x 512 / 256 = 6.4

LINEAR_PROBE_RECIPES = {
    "vit_tiny": LinearProbeRecipe(**SIZES["vit_tiny"], **SMALL_MACHINES),
    "vit_small": LinearProbeRecipe(**SIZES["vit_small"], **SMALL_MACHINES),
    "vit_base": LinearProbeRecipe(**SIZES["vit_base"], warmup_epochs=10),
    "vit_large": LinearProbeRecipe(**SIZES["vit_large"], warmup_epochs=10, epochs=50),
    "vit_huge": LinearProbeRecipe(**SIZES["vit_huge"], warmup_epochs=10, epochs=50),
    "vit_large_paper": LinearProbeRecipe(**SIZES["vit_large"], warmup_epochs=10),
    "vit_huge_paper": LinearProbeRecipe(**SIZES["vit_huge"], warmup_epochs=10),
    "digits": LinearProbeRecipe(**SIZES["digits"], **SMALL_MACHINES, min_area=0.5, flip=False, eval_every_epochs=10),
}

COMMAND = "python -m keras_mae.linear_probe --encoder=ENCODER --data=SHARDS --run_dir=RUN --recipe="
V100 = "32 V100 GPUs, 2 h 20 min for 90 epochs of ViT-B (official code)"

LINEAR_PROBE_NOTES = {
    "vit_tiny": Provenance(COMMAND + "vit_tiny", "one small machine", "-", "not measured"),
    "vit_small": Provenance(COMMAND + "vit_small", "one small machine", "-", "not measured"),
    "vit_base": Provenance(COMMAND + "vit_base", V100, "67.8 (paper 68.0), encoder of 1600 epochs", "published"),
    "vit_large": Provenance(COMMAND + "vit_large", V100, "76.0, encoder of 1600 epochs", "published"),
    "vit_huge": Provenance(COMMAND + "vit_huge", V100, "77.2, encoder of 1600 epochs", "published"),
    "vit_large_paper": Provenance(
        COMMAND + "vit_large_paper", "TPUs", "75.8, encoder of 1600 epochs; 73.9 of 800", "published"
    ),
    "vit_huge_paper": Provenance(COMMAND + "vit_huge_paper", "TPUs", "76.6, encoder of 1600 epochs", "published"),
    "digits": Provenance(
        COMMAND + "digits --split=train --val_split=held_out --cache_features=true",  # splits as tools.demo makes them
        "2 CPU cores, 10 s",
        "4,000 labelled digits: 89.4, 89.9, 89.8 (three seeds of the probe)",
        "measured here",
    ),
}
