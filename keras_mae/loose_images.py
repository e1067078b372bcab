"""Images that lie in folders as they are, without shards, as evaluation sees them: the resized image's centre."""

import dataclasses
from collections.abc import Generator

import numpy as np
import tensorflow as tf

from pipeline.array_files import ArrayKind, is_array, only_arrays_have, read_array_header
from pipeline.dataset import as_tensorflow
from pipeline.host_batches import BatchMaker
from pipeline.host_engine import make_view
from pipeline.host_reading import LoadedBlock, ReadingError
from pipeline.locations import SourceError, read_location
from pipeline.processors import available_processors
from pipeline.sources import Source
from pipeline.stats import ReadingStats
from pipeline.stream_reader import Rows
from pipeline.view_options import ViewOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class LooseView(ViewOptions):
    """What is seen of loose images: of pictures, or of arrays that are all of one kind."""

    view: str = "eval"
    arrays: ArrayKind | None = None

    @property
    def dtype(self) -> str:
        return self.arrays.dtype if self.arrays else "uint8"


def array_kind(data: bytes) -> ArrayKind | None:
    """What an image file is an array of; None where it is none, so a picture.

    Raises:
        ValueError: it is a damaged array; the message is what to say about "it".
    """
    return read_array_header(data).kind if is_array(data) else None


def view_of(encoder, kind: ArrayKind | None, resize_size: int | None) -> LooseView:
    """How an encoder sees images.

    Args:
        encoder: a `VisionTransformer`.
        kind: of the images, if they are arrays.
        resize_size: short side in pixels before the centre is taken; None: by the rule of 256/224.

    Raises:
        ValueError: the images have other channels than the encoder takes, or `resize_size` is too small.
    """
    if kind is not None and kind.channels != encoder.channels:
        raise ValueError(f"The model takes images of {encoder.channels} channels. Received: arrays, {kind}")
    if kind is None and only_arrays_have(encoder.channels, "uint8"):
        raise ValueError(f"The model takes images of {encoder.channels} channels, which only arrays (.npy) have.")
    return LooseView(image_size=encoder.image_size, channels=encoder.channels, resize_size=resize_size, arrays=kind)


def folder_dataset(
    source: Source, samples: int, view: LooseView, batch_size: int, stats: ReadingStats, num_threads: int | None = None
) -> tf.data.Dataset:
    """Batches of a source's images in its order, as `pipeline.load` gives those of a split for evaluation.

    Args:
        source: that has been scanned.
        samples: how many it has.
        view: of `view_of`.
        batch_size: images in a batch; the last one is filled up at weight 0.
        stats: counts what is skipped.
        num_threads: that decode; None: one for each processor.
    """
    maker = BatchMaker(
        make_view(view),
        view.image_shape,
        dtype=view.dtype,
        seed=0,
        noise={},
        stats=stats,
        num_threads=num_threads or available_processors(),
    )
    return as_tensorflow(lambda: maker.batches(_rows(source, samples, batch_size), batch_size), view, batch_size)


def _rows(source: Source, samples: int, batch_size: int) -> Generator[list[Rows]]:
    for start in range(0, samples, batch_size):
        index = np.arange(start, min(start + batch_size, samples))
        items = source.items(index)
        try:
            encoded = [memoryview(read_location(item.image)) for item in items]
        except SourceError as error:
            raise ReadingError(str(error)) from None
        block = LoadedBlock(
            stretches=encoded,
            slot=np.arange(len(items)),
            index=index,
            offset=np.zeros(len(items), np.int64),
            size=np.array([len(data) for data in encoded], np.int64),
            label=np.array([-1 if item.label is None else item.label for item in items], np.int32),
            epoch=0,
            name=lambda place, items=items: items[place].name,
        )
        yield [Rows(block, 0, len(items))]
