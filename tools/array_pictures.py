"""Images of any number of channels, of 8 or 16 bits, as pictures that can be drawn."""

import numpy as np


def visible_channels(images: np.ndarray) -> np.ndarray:
    """(..., H, W, 3), the first three channels as red, green and blue; of fewer than three the first alone, as grey.

    Which channels those are is the maker's of the data: of Sentinel-2's, for example, coastal, blue and green.

    Args:
        images: (..., H, W, C).
    """
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1]


def as_pictures(images: np.ndarray) -> np.ndarray:
    """uint8 pictures of the `visible_channels`.

    8 bits stay as they are. Of 16 bits the brightest visible value becomes white, since sensors use 10 to 14 of them;
    images that are to be compared must come together.

    Args:
        images: uint8 or uint16 (..., H, W, C).
    """
    visible = visible_channels(images)
    if visible.dtype == np.uint8:
        return visible
    return (visible * (255 / max(int(visible.max()), 1)) + 0.5).astype(np.uint8)
