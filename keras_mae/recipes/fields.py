"""The fields that the recipes share, the peak learning rate, and what naming one field does to others."""

import dataclasses
import math
from typing import ClassVar

from keras_mae.recipes.durations import INTERVALS, Durations, names_of

# Fields that say the same thing in several ways: naming one of them clears the others.
ALTERNATIVES = (("steps", "images"), *(names_of(what) for what in ("warmup", *INTERVALS)))
# Fields that others override, and stay beside them: naming one of them clears the others, unless these are named too.
OVERRIDDEN = {"epochs": ("steps", "images"), "base_learning_rate": ("learning_rate",)}

POSITIVE_FIELDS = (
    "patch_size",
    "channels",
    "embed_dim",
    "depth",
    "num_heads",
    "decoder_embed_dim",
    "decoder_depth",
    "decoder_num_heads",
    "batch_size",
    "base_learning_rate",
    "learning_rate",
    "clip_global_norm",
    "accumulation_steps",
    "shuffle_block_shards",
    "max_streams",
    "checkpoint_every_minutes",
    "keep_checkpoints",
    "knn_every_epochs",
    "knn_samples",
)
SHARE_FIELDS = ("beta_1", "beta_2", "ema_decay", "layer_decay", "label_smoothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Durations):
    """Model, schedule and logging of a run; every field is a flag of the same name.

    Attributes:
        image_size: side in pixels, or height,width.
        patch_size: side of a patch in pixels.
        channels: of the images, 1 (grey) or 3 (RGB); of shards of arrays (`.npy`) theirs, any number.
        pixel_mean: per channel on the scale 0..1 (255 is 1, of uint16 arrays 65535); one value serves all channels.
        pixel_std: per channel on the same scale; one value serves all channels.
        embed_dim: width of the encoder.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        remat: none, or blocks to compute the inside of each Transformer block again in the backward pass; less memory,
            more time, the same numbers.
        base_learning_rate: for a batch of 256; the peak rate is base_learning_rate * batch_size / 256.
        learning_rate: the peak rate as it is, whatever the batch; overrides base_learning_rate.
        min_learning_rate: at the end of the cosine.
        weight_decay: decoupled; not on biases and norms.
        beta_1: AdamW's first decay.
        beta_2: AdamW's second decay.
        clip_global_norm: largest length of all gradients taken as one vector, summed over the replicas; unset: any.
        ema_decay: of exponential moving averages of the weights, by the update; evaluation and export take these
            instead of the weights. They remember some 1 / (1 - ema_decay) updates. Unset: none.
        accumulation_steps: equal parts of a replica's share of the batch that are computed one after the other, before
            the one update; less memory, some more time, the same numbers. Only mixup and cutmix, which pair images
            within a part, and a BatchNorm, which norms by the part, see the difference.
        min_area: smallest share of the image's area in a random crop.
        flip: mirror half of the training images.
        resize_size: short side in pixels before evaluation's centre crop; unset: 256/224 of the image size up to 224.
        shuffle_block_shards: shards whose samples are mixed at a time; more of it takes more memory.
        max_streams: upper bound of the canonical streams of the order; raise it to the number of hosts above 8.
        seed: of order, crops, masks and initial weights.
        checkpoint_every_minutes: minutes after a checkpoint at which the next is due, if it is not by steps; unset: by
            steps only.
        keep_checkpoints: newest checkpoints that stay; while one is written, the disk holds one more.
    """

    command: ClassVar[str]  # keras_mae.COMMAND takes recipes of this class

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    channels: int = 3
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    remat: str = "none"
    base_learning_rate: float = 1.5e-4
    learning_rate: float | None = None
    min_learning_rate: float = 0.0
    weight_decay: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.95
    clip_global_norm: float | None = None
    ema_decay: float | None = None
    accumulation_steps: int = 1
    min_area: float = 0.2
    flip: bool = True
    resize_size: int | None = None
    shuffle_block_shards: int = 8
    max_streams: int = 8
    seed: int = 0
    checkpoint_every_minutes: float | None = None
    keep_checkpoints: int = 2

    def __post_init__(self):
        super().__post_init__()
        for name in POSITIVE_FIELDS:
            value = getattr(self, name, None)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0. Received: {value}")
        for name in SHARE_FIELDS:
            value = getattr(self, name, None)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be at least 0 and at most 1. Received: {value}")
        if self.resize_size is not None and self.resize_size < min(_sides(self.image_size)):
            raise ValueError(
                "resize_size must be at least the image size, or the centre crop does not fit. "
                f"Received: resize_size={self.resize_size}, image_size={self.image_size}"
            )
        if not 0 < self.min_area <= 1:
            raise ValueError(f"min_area must be above 0 and at most 1. Received: {self.min_area}")


def _sides(image_size) -> tuple[int, int]:
    return (image_size, image_size) if isinstance(image_size, int) else image_size


STRUCTURE_FIELDS = (
    "image_size",
    "patch_size",
    "channels",
    "pixel_mean",
    "pixel_std",
    "embed_dim",
    "depth",
    "num_heads",
    "remat",
)


def structure(recipe: Recipe) -> dict:
    """The fields that are arguments of `VisionTransformer`."""
    return {name: getattr(recipe, name) for name in STRUCTURE_FIELDS}


def peak_learning_rate(recipe: Recipe) -> float:
    """`learning_rate`, or base_learning_rate x batch_size / 256 (appendix A.1 of the paper)."""
    if recipe.learning_rate is not None:
        return recipe.learning_rate
    return recipe.base_learning_rate * recipe.batch_size / 256


def override(recipe: Recipe, values: dict) -> Recipe:
    """The recipe with other values for some fields; naming one of `ALTERNATIVES` clears the others.

    Raises:
        ValueError: two of such fields are named, or a value is one that no recipe can have.
    """
    return dataclasses.replace(recipe, **cleared(values))


def cleared(values: dict) -> dict:
    """The values, and None for the fields that they leave without meaning.

    Raises:
        ValueError: two fields that mean the same are given.
    """
    given = {name for name, value in values.items() if value is not None}
    emptied: dict = {}
    for names in ALTERNATIVES:
        named = [name for name in names if name in given]
        if len(named) > 1:
            raise ValueError(f"Give {' or '.join(named)}, not both.")
        if named:
            emptied |= dict.fromkeys(names)
    for name, overriding in OVERRIDDEN.items():
        if name in given:
            emptied |= {other: None for other in overriding if other not in given}
    return {**emptied, **values}


def from_json(fields: dict) -> dict:
    """The fields of a recipe as recipe.json holds them, with tuples where JSON has lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
