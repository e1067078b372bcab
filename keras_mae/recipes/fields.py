"""The fields that the recipes share, and the steps that follow from them."""

import dataclasses
import math

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
    "epochs",
    "steps",
    "base_learning_rate",
    "shuffle_block_shards",
    "max_streams",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "log_every_steps",
    "eval_every_epochs",
)
SHARE_FIELDS = ("warmup_share", "beta_1", "beta_2", "layer_decay", "label_smoothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
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
        batch_size: global, over all replicas.
        epochs: length of the run in passes over the training split.
        steps: length of the run in updates; overrides epochs.
        warmup_epochs: length of the linear warmup in epochs; part of the run.
        warmup_share: length of the warmup as a share of the run (0..1), instead of warmup_epochs.
        base_learning_rate: for a batch of 256; the peak rate is base_learning_rate * batch_size / 256.
        min_learning_rate: at the end of the cosine.
        weight_decay: decoupled; not on biases and norms.
        beta_1: AdamW's first decay.
        beta_2: AdamW's second decay.
        min_area: smallest share of the image's area in a random crop.
        flip: mirror half of the training images.
        resize_size: short side in pixels before evaluation's centre crop; unset: 256/224 of the image size up to 224.
        shuffle_block_shards: shards whose samples are mixed at a time; more of it takes more memory.
        max_streams: upper bound of the canonical streams of the order; raise it to the number of hosts above 8.
        seed: of order, crops, masks and initial weights.
        checkpoint_every_steps: updates between checkpoints.
        keep_checkpoints: newest checkpoints that stay.
        log_every_steps: updates between rows of metrics.jsonl.
        eval_every_epochs: epochs between evaluations on the validation split.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    channels: int = 3
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    remat: str = "none"
    batch_size: int = 4096
    epochs: float = 800.0
    steps: int | None = None
    warmup_epochs: float | None = None
    warmup_share: float | None = None
    base_learning_rate: float = 1.5e-4
    min_learning_rate: float = 0.0
    weight_decay: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.95
    min_area: float = 0.2
    flip: bool = True
    resize_size: int | None = None
    shuffle_block_shards: int = 8
    max_streams: int = 8
    seed: int = 0
    checkpoint_every_steps: int = 100
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    eval_every_epochs: float = 1.0

    def __post_init__(self):
        if (self.warmup_epochs is None) == (self.warmup_share is None):
            raise ValueError(
                "A recipe needs warmup_epochs or warmup_share, not both. "
                f"Received: warmup_epochs={self.warmup_epochs}, warmup_share={self.warmup_share}"
            )
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


def total_steps(recipe: Recipe, samples: int) -> int:
    """Updates of the whole run: `steps`, or ceil(epochs x samples / batch_size)."""
    return recipe.steps or math.ceil(recipe.epochs * samples / recipe.batch_size)


def warmup_steps(recipe: Recipe, samples: int) -> float:
    """Updates of the warmup, fractional as it comes."""
    if recipe.warmup_share is not None:
        return recipe.warmup_share * total_steps(recipe, samples)
    return recipe.warmup_epochs * samples / recipe.batch_size


def peak_learning_rate(recipe: Recipe) -> float:
    """base_learning_rate x batch_size / 256 (appendix A.1 of the paper)."""
    return recipe.base_learning_rate * recipe.batch_size / 256


def override(recipe: Recipe, values: dict) -> Recipe:
    """The recipe with other values for some fields; naming one kind of warmup clears the other."""
    if "warmup_epochs" in values and "warmup_share" in values:
        raise ValueError("Give warmup_epochs or warmup_share, not both.")
    if "warmup_epochs" in values:
        values = {**values, "warmup_share": None}
    elif "warmup_share" in values:
        values = {**values, "warmup_epochs": None}
    if "epochs" in values and "steps" not in values:
        values = {**values, "steps": None}
    return dataclasses.replace(recipe, **values)


def from_json(fields: dict) -> dict:
    """The fields of a recipe as recipe.json holds them, with tuples where JSON has lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
