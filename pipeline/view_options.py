"""What is seen of an image, checked before anything is read."""

import dataclasses
from collections.abc import Mapping

from pipeline.argument_checks import whole
from pipeline.array_files import only_arrays_have
from pipeline.augment import ColorJitter, RandAugment
from pipeline.crop_resize import FixedCrop

VIEWS = ("pretrain", "train", "probe", "eval")
CROPS = ("random", "fixed", "central")
MIN_AREA = {"pretrain": 0.2, "train": 0.08, "probe": 0.08}
WITH_LABELS = ("train", "probe")
# Features that every batch has; a noise cannot take their names.
RESERVED_FEATURES = ("image", "index")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The arguments of `pipeline.load` on images, which it describes.

    Raises:
        ValueError: an argument is out of its range, or does not go with the view.
    """

    view: str
    image_size: tuple[int, int]
    channels: int = 3
    seed: int = 0
    noise: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_area: float | None = None
    flip: bool = True
    crop: str = "random"
    resize_size: int | None = None
    rand_augment: RandAugment | None = None
    color_jitter: ColorJitter | None = None

    def __post_init__(self):
        whole("seed", self.seed, minimum=0)
        _check_choices(self)
        if self.view == "eval":
            _check_evaluation(self)
        else:
            _check_training(self)

    @property
    def is_training(self) -> bool:
        """Whether the batches come without end, shuffled and cropped at random."""
        return self.view != "eval"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return (*self.image_size, self.channels)

    @property
    def dtype(self) -> str:
        """Type of the images' numbers: "uint8", or that of the arrays that are read."""
        return "uint8"

    @property
    def crop_min_area(self) -> float:
        """Lower bound of the random crop's share of the area."""
        return MIN_AREA[self.view] if self.min_area is None else self.min_area

    @property
    def fixed_crop(self) -> FixedCrop | None:
        """What `crop` says of a training view, None for random resized crops."""
        if self.crop == "random":
            return None
        height, width = self.image_size
        return FixedCrop(min(self.image_size) / self.eval_resize_size, width / height, self.crop == "central")

    @property
    def eval_resize_size(self) -> int:
        """Short side, in pixels, to which evaluation and crops of fixed size resize."""
        return default_resize_size(self.image_size) if self.resize_size is None else self.resize_size


def default_resize_size(image_size: tuple[int, int]) -> int:
    """Short side, in pixels, to which evaluation resizes: 256/224 of it up to 224, just it above."""
    short = min(image_size)
    return round(short * 256 / 224) if short <= 224 else short


def _check_choices(options: ViewOptions) -> None:
    if options.view not in VIEWS:
        raise ValueError(f"`view` must be one of {', '.join(VIEWS)}. Received: {options.view!r}")
    if options.crop not in CROPS:
        raise ValueError(f"`crop` must be one of {', '.join(CROPS)}. Received: {options.crop!r}")
    whole("channels", options.channels, minimum=1)
    for name in ("rand_augment", "color_jitter"):
        if getattr(options, name) is not None and only_arrays_have(options.channels, options.dtype):
            raise ValueError(
                f"`{name}` is for uint8 images of 1 or 3 channels. Received: {options.dtype} images of "
                f"{options.channels} channels"
            )
    for name, length in options.noise.items():
        if not isinstance(name, str) or name in RESERVED_FEATURES or not name:
            raise ValueError(
                f"A name in `noise` must be a text other than {', '.join(RESERVED_FEATURES)}. Received: {name!r}"
            )
        whole(f"noise[{name!r}]", length, minimum=1)


def _check_evaluation(options: ViewOptions) -> None:
    for name in ("min_area", "rand_augment", "color_jitter"):
        if getattr(options, name) is not None:
            raise ValueError(f"`{name}` is for training, not for view 'eval'. Received: {getattr(options, name)}")
    if options.crop != "random":
        raise ValueError(f"`crop` is for training, not for view 'eval'. Received: {options.crop!r}")
    _check_resize_size(options)


def _check_resize_size(options: ViewOptions) -> None:
    short = min(options.image_size)
    if options.resize_size is not None and whole("resize_size", options.resize_size, minimum=1) < short:
        raise ValueError(
            f"`resize_size` must be at least {short}, the short side of `image_size`. Received: {options.resize_size}"
        )


def _check_training(options: ViewOptions) -> None:
    if options.crop == "random":
        if options.resize_size is not None:
            raise ValueError(
                f"`resize_size` is for view 'eval' and crops of fixed size, not for random crops of {options.view!r}. "
                f"Received: {options.resize_size}"
            )
    elif options.view != "pretrain" or options.min_area is not None:
        raise ValueError(
            f"crop={options.crop!r} is for view 'pretrain', and takes no `min_area`. "
            f"Received: view={options.view!r}, min_area={options.min_area}"
        )
    _check_resize_size(options)
    if options.min_area is not None and not 0 < options.min_area <= 1:
        raise ValueError(f"`min_area` must be above 0 and at most 1. Received: {options.min_area}")
