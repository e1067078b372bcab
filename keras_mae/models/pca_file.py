"""A PCA of patches as a file: one .npz, which `tools.fit_pca` writes and `PCATarget.from_file` reads."""

import dataclasses
import json
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

FORMAT = "keras_mae patch PCA 1"
ARRAYS = ("mean", "components", "explained_variance")
NUMBERS = ("total_variance", "patch_size", "channels", "pixel_mean", "pixel_std", "source")


@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """Principal components of normalised patches, and what they were fitted to.

    Attributes:
        mean: float32 (values,), of all patches; values = patch_size * patch_size * channels, in `patchify`'s order.
        components: float32 (num_components, values), orthonormal, by falling variance.
        explained_variance: float64 (num_components,), of each coefficient.
        total_variance: sum over all values of a patch.
        patch_size: side of a patch in pixels.
        channels: of the images.
        pixel_mean: per channel on the scale 0..1; was subtracted before.
        pixel_std: per channel on the scale 0..1; pixels were divided by it before.
        source: the images (shard set's fingerprint, view, sizes, number of images, ...), for the record; JSON.
    """

    mean: np.ndarray
    components: np.ndarray
    explained_variance: np.ndarray
    total_variance: float
    patch_size: int
    channels: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    source: dict[str, Any]

    def __post_init__(self):
        values = self.patch_size**2 * self.channels
        num_components = len(self.explained_variance)
        shapes = (np.shape(self.mean), np.shape(self.components))
        if shapes != ((values,), (num_components, values)):
            raise ValueError(
                f"Expected mean and components of shapes ({values},) and ({num_components}, {values}). "
                f"Received: {shapes[0]} and {shapes[1]}"
            )

    @property
    def num_components(self) -> int:
        """How many coefficients there are."""
        return len(self.components)

    @property
    def explained_shares(self) -> np.ndarray:
        """float64 (num_components,): share of the total variance that the first 1, 2, ... coefficients explain."""
        return np.cumsum(self.explained_variance) / self.total_variance

    def write(self, file: BinaryIO) -> None:
        """Writes the .npz into an open file."""
        numbers = json.dumps({"format": FORMAT, **{name: getattr(self, name) for name in NUMBERS}})
        np.savez(file, numbers=np.array(numbers), **{name: getattr(self, name) for name in ARRAYS})


def read_pca(path: str | os.PathLike) -> PatchPCA:
    """The PCA in a file that `tools.fit_pca` wrote.

    Raises:
        ValueError: the file is damaged, or something else.
        OSError: it cannot be read.
    """
    try:
        with np.load(path) as content:
            numbers = json.loads(str(content["numbers"]))
            if numbers.pop("format") != FORMAT:
                raise ValueError("another format")
            arrays = {name: content[name] for name in ARRAYS}
        statistics = {name: tuple(numbers.pop(name)) for name in ("pixel_mean", "pixel_std")}
        return PatchPCA(**arrays, **numbers, **statistics)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged, or no PCA of patches; expected a file of tools.fit_pca. Received: {error}"
        ) from error
