"""End-to-end fine-tuning recipes (the paper's Table 9, with the official code's values).

vit_base, vit_large, vit_huge: the official learning rates, decay, layer decay, drop path and smoothing. RandAugment,
mixup, cutmix and random erasing, which the published accuracies (83.6, 85.9, 86.9) also rest on, are not part of the
training view yet: expect less.

vit_tiny, vit_small: for small machines and small data.

digits, digits_scratch: the demo's, for 100 labelled digits; equal steps and augmentation. The base learning rate of
scratch is the best of three; docs/demo.md has the figures (measured).
"""

import dataclasses

from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.sizes import SIZES


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """What fine-tuning adds.

    Attributes:
        layer_decay: factor on the learning rate from one layer to the layer below.
        drop_path_rate: share of dropped residual branches in the last block.
        label_smoothing: share of the probability spread over all classes.
    """

    beta_2: float = 0.999
    min_area: float = 0.08
    min_learning_rate: float = 1e-6
    layer_decay: float = 0.75
    drop_path_rate: float = 0.1
    label_smoothing: float = 0.1


SMALL_MACHINES = {"batch_size": 256, "epochs": 100, "warmup_share": 0.05, "base_learning_rate": 1e-3}
PUBLISHED = {"batch_size": 1024, "warmup_epochs": 5}
DIGITS = FinetuneRecipe(
    **SIZES["digits"],
    batch_size=64,
    steps=200,
    warmup_share=0.1,
    base_learning_rate=8e-3,
    min_area=0.5,
    flip=False,
    eval_every_epochs=32,
)

FINETUNE_RECIPES = {
    "vit_tiny": FinetuneRecipe(**SIZES["vit_tiny"], **SMALL_MACHINES),
    "vit_small": FinetuneRecipe(**SIZES["vit_small"], **SMALL_MACHINES),
    "vit_base": FinetuneRecipe(
        **SIZES["vit_base"], **PUBLISHED, epochs=100, base_learning_rate=5e-4, layer_decay=0.65, drop_path_rate=0.1
    ),
    "vit_large": FinetuneRecipe(
        **SIZES["vit_large"], **PUBLISHED, epochs=50, base_learning_rate=1e-3, layer_decay=0.75, drop_path_rate=0.2
    ),
    "vit_huge": FinetuneRecipe(
        **SIZES["vit_huge"], **PUBLISHED, epochs=50, base_learning_rate=1e-3, layer_decay=0.75, drop_path_rate=0.3
    ),
    "digits": DIGITS,
    "digits_scratch": dataclasses.replace(DIGITS, base_learning_rate=8e-3, layer_decay=1.0),
}
