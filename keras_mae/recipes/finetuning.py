"""End-to-end fine-tuning recipes, and those that train the same ViT from scratch (the paper's Tables 9 and 11).

vit_base, vit_large, vit_huge: the official code's values, the ones that reproduce.

vit_base_paper, vit_large_paper, vit_huge_paper: as Table 9 prints them; what it does not print (random erasing, a
least learning rate) is off.

vit_huge_448: at 448 pixels, for which there is no official script: a public reproduction's values.

vit_base_scratch, vit_large_scratch, vit_huge_scratch: Table 11, with new weights instead of an encoder.

vit_tiny, vit_small: for small machines and small data.

digits, digits_scratch: the demo's, for 100 labelled digits; equal steps and augmentation. The base learning rate of
scratch is the best of three (docs/demo.md).

FINETUNE_NOTES has command, hardware and result of each.
"""

import dataclasses
import math
from typing import ClassVar

from keras_mae.recipes.fields import Recipe
from keras_mae.recipes.provenance import Provenance
from keras_mae.recipes.sizes import SIZES


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """What fine-tuning adds.

    Attributes:
        from_scratch: train the recipe's ViT from new weights instead of an encoder.
        trainable_blocks: partial fine-tuning of the last so many blocks, the rest stays as it is: a whole number, or .5
            for the MLP of the last block, or 0 for the head alone. Unset: all is trained.
        layer_decay: factor on the learning rate from one layer to the layer below.
        drop_path_rate: share of dropped residual branches in the last block.
        label_smoothing: share of the probability spread over all classes.
        rand_augment: policy for training images, such as rand-m9-mstd0.5-inc1; empty for none.
        mixup: the share of an image in its mixture is Beta(mixup, mixup); 0 for no mixup.
        cutmix: the same for the area that cutmix leaves; 0 for no cutmix.
        mixup_prob: probability that a batch (each replica its own part) is mixed at all, where either is on.
        mixup_switch_prob: probability that it is cutmix, where both are on.
        erasing: probability that a box of an image is filled with noise.
    """

    command: ClassVar[str] = "finetune"

    from_scratch: bool = False
    trainable_blocks: float | None = None
    beta_2: float = 0.999
    min_area: float = 0.08
    min_learning_rate: float = 1e-6
    layer_decay: float = 0.75
    drop_path_rate: float = 0.1
    label_smoothing: float = 0.1
    rand_augment: str | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    erasing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_trainable_blocks(self)
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0. Received: {getattr(self, name)}")
        for name in ("mixup_prob", "mixup_switch_prob", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be at least 0 and at most 1. Received: {getattr(self, name)}")


def check_trainable_blocks(recipe: FinetuneRecipe) -> None:
    """Raises ValueError unless the recipe's encoder can be trained in part as it says."""
    number = recipe.trainable_blocks
    if number is None:
        return
    if number != 0.5 and not (0 <= number <= recipe.depth and number == int(number)):
        raise ValueError(
            "trainable_blocks must be 0 (the head alone), 0.5 (the MLP of the last block), or a whole number of "
            f"blocks, at most depth={recipe.depth}. Received: {number:g}"
        )
    if recipe.from_scratch:
        raise ValueError(
            "trainable_blocks leaves a part of a pre-trained encoder as it is; from_scratch has new weights, which all "
            f"must be trained. Received: trainable_blocks={number:g}, from_scratch=True"
        )


SMALL_MACHINES = {"batch_size": 256, "epochs": 100, "warmup_share": 0.05, "base_learning_rate": 1e-3}
PUBLISHED = {
    "batch_size": 1024,
    "warmup_epochs": 5,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
}
PAPER = {
    "batch_size": 1024,
    "warmup_epochs": 5,
    "base_learning_rate": 1e-3,
    "min_learning_rate": 0.0,
    "layer_decay": 0.75,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
}
SCRATCH = {
    "from_scratch": True,
    "batch_size": 4096,
    "warmup_epochs": 20,
    "base_learning_rate": 1e-4,
    "min_learning_rate": 0.0,
    "weight_decay": 0.3,
    "beta_2": 0.95,
    "ema_decay": 0.9999,
    "layer_decay": 1.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
}
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
    "vit_huge_448": FinetuneRecipe(
        **SIZES["vit_huge"],
        **PUBLISHED,
        image_size=448,
        resize_size=512,
        epochs=50,
        base_learning_rate=1e-3,
        layer_decay=0.75,
        drop_path_rate=0.3,
    ),
    "vit_base_paper": FinetuneRecipe(**SIZES["vit_base"], **PAPER, epochs=100, drop_path_rate=0.1),
    "vit_large_paper": FinetuneRecipe(**SIZES["vit_large"], **PAPER, epochs=50, drop_path_rate=0.1),
    "vit_huge_paper": FinetuneRecipe(**SIZES["vit_huge"], **PAPER, epochs=50, drop_path_rate=0.2),
    "vit_base_scratch": FinetuneRecipe(**SIZES["vit_base"], **SCRATCH, epochs=300, drop_path_rate=0.1),
    "vit_large_scratch": FinetuneRecipe(**SIZES["vit_large"], **SCRATCH, epochs=200, drop_path_rate=0.2),
    "vit_huge_scratch": FinetuneRecipe(**SIZES["vit_huge"], **SCRATCH, epochs=200, drop_path_rate=0.2),
    "digits": DIGITS,
    "digits_scratch": dataclasses.replace(DIGITS, from_scratch=True, base_learning_rate=8e-3, layer_decay=1.0),
}

COMMAND = "python -m keras_mae.finetune --data=SHARDS --run_dir=RUN --encoder=ENCODER --recipe="
SCRATCH_COMMAND = "python -m keras_mae.finetune --data=SHARDS --run_dir=RUN --recipe="
DIGITS_SPLITS = " --split=labelled --val_split=held_out"  # as tools.demo makes them

FINETUNE_NOTES = {
    "vit_tiny": Provenance(COMMAND + "vit_tiny", "one small machine", "-", "not measured"),
    "vit_small": Provenance(COMMAND + "vit_small", "one small machine", "-", "not measured"),
    "vit_base": Provenance(
        COMMAND + "vit_base",
        "32 V100 GPUs, 7 h 11 min (official code)",
        "83.6 (four seeds: 83.46 to 83.66), encoder of 1600 epochs",
        "published",
    ),
    "vit_large": Provenance(
        COMMAND + "vit_large",
        "32 V100 GPUs, 8 h 52 min (official code)",
        "85.9 (four seeds: 85.76 to 85.95), encoder of 1600 epochs",
        "published",
    ),
    "vit_huge": Provenance(
        COMMAND + "vit_huge",
        "64 V100 GPUs, 13 h 9 min (official code)",
        "86.9, encoder of 1600 epochs",
        "published",
    ),
    "vit_huge_448": Provenance(
        COMMAND + "vit_huge_448", "-", "87.3 (paper 87.8), encoder of 1600 epochs", "measured by others"
    ),
    "vit_base_paper": Provenance(COMMAND + "vit_base_paper", "TPUs", "83.6, encoder of 1600 epochs", "published"),
    "vit_large_paper": Provenance(COMMAND + "vit_large_paper", "TPUs", "85.9, encoder of 1600 epochs", "published"),
    "vit_huge_paper": Provenance(COMMAND + "vit_huge_paper", "TPUs", "86.9, encoder of 1600 epochs", "published"),
    "vit_base_scratch": Provenance(SCRATCH_COMMAND + "vit_base_scratch", "TPUs", "82.3", "published"),
    "vit_large_scratch": Provenance(SCRATCH_COMMAND + "vit_large_scratch", "TPUs", "82.6", "published"),
    "vit_huge_scratch": Provenance(SCRATCH_COMMAND + "vit_huge_scratch", "TPUs", "83.1", "published"),
    "digits": Provenance(
        COMMAND + "digits" + DIGITS_SPLITS,
        "2 CPU cores",
        "100 labelled digits: 89.1, 87.8, 86.1 (three seeds)",
        "measured here",
    ),
    "digits_scratch": Provenance(
        SCRATCH_COMMAND + "digits_scratch" + DIGITS_SPLITS,
        "2 CPU cores",
        "100 labelled digits: 49.5, 59.2, 57.8 (three seeds)",
        "measured here",
    ),
}
