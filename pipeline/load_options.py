"""What `pipeline.load` was asked for, checked before anything is read."""

import dataclasses
import functools

from pipeline.argument_checks import whole
from pipeline.locations import is_url
from pipeline.manifest import ShardSet, Split
from pipeline.order import MAX_STREAMS, SHUFFLE_BLOCK_SHARDS, ManifestOrder, ShuffledOrder
from pipeline.shard_cache import ShardCache
from pipeline.stats import ReadingStats
from pipeline.view_options import WITH_LABELS, ViewOptions

ENGINES = ("auto", "host", "graph")
_MINIMUM = {
    "batch_size": 1,
    "start_step": 0,
    "shuffle_block_shards": 1,
    "max_streams": 1,
    "host": 0,
    "num_hosts": 1,
    "num_threads": 1,
    "prefetch": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions(ViewOptions):
    """The arguments of `pipeline.load`, which describes them; defaults are filled in.

    Raises:
        ValueError: an argument is out of its range, or does not go with another one.
    """

    shard_set: ShardSet
    split: Split
    batch_size: int
    start_step: int = 0
    shuffle_block_shards: int = SHUFFLE_BLOCK_SHARDS
    max_streams: int = MAX_STREAMS
    host: int = 0
    num_hosts: int = 1
    engine: str = "auto"
    num_threads: int | None = None
    prefetch: int | None = None
    stats: ReadingStats = dataclasses.field(default_factory=ReadingStats)
    cache: ShardCache | None = None
    data_service: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name, minimum in _MINIMUM.items():
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), minimum=minimum)
        if self.start_step and not self.is_training:
            raise ValueError(f"`start_step` must be 0 for view 'eval', a single pass. Received: {self.start_step}")
        _check_engine(self)
        _check_hosts(self)
        _check_split(self)
        _check_channels(self)
        _check_cache(self)

    @property
    def host_batch_size(self) -> int:
        """Rows of a global batch that this host gets."""
        return self.batch_size // self.num_hosts

    @property
    def dtype(self) -> str:
        """Type of the images' numbers: "uint8", or that of the split's arrays."""
        return self.split.arrays.dtype if self.split.arrays else "uint8"

    @property
    def labels(self) -> str:
        """What the readers are to do about labels: "ignored", "optional" or "required"."""
        if self.view in WITH_LABELS:
            return "required"
        return "optional" if self.view == "eval" and self.shard_set.classes else "ignored"

    @functools.cached_property
    def order(self) -> ShuffledOrder | ManifestOrder:
        """Which sample comes when."""
        counts = [shard.samples for shard in self.split.shards]
        if not self.is_training:
            return ManifestOrder(counts)
        return ShuffledOrder(
            counts, self.seed, shuffle_block_shards=self.shuffle_block_shards, max_streams=self.max_streams
        )

    @property
    def num_batches(self) -> int | None:
        """Batches of an evaluation; None in training, which has no end."""
        return None if self.is_training else self.order.num_batches(self.host_batch_size, self.num_hosts)


def _check_engine(options: LoadOptions) -> None:
    if options.engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {', '.join(ENGINES)}. Received: {options.engine!r}")
    if options.data_service and options.engine == "host":
        raise ValueError("`data_service` runs the graph engine on other machines: leave out engine='host'")
    if options.data_service and options.stats.max_corrupt:
        raise ValueError(
            "With `data_service` nobody counts what is skipped: `max_corrupt` must be 0. "
            f"Received: {options.stats.max_corrupt}"
        )


def _check_hosts(options: LoadOptions) -> None:
    if options.host >= options.num_hosts:
        raise ValueError(
            f"`host` must be from 0 to num_hosts - 1. Received: host={options.host}, num_hosts={options.num_hosts}"
        )
    if options.batch_size % options.num_hosts:
        raise ValueError(
            "`batch_size` is global, and each host takes an equal part of it: it must be a multiple of the hosts. "
            f"Received: batch_size={options.batch_size}, num_hosts={options.num_hosts}"
        )


def _check_cache(options: LoadOptions) -> None:
    largest = max(options.split.shards, key=lambda shard: shard.bytes)
    if options.cache is not None and is_url(options.shard_set.root) and options.cache.max_bytes < largest.bytes:
        raise ValueError(
            f"`cache_bytes` must be at least {largest.bytes}, the size of {largest.file}, better that of all shards "
            f"which are read at a time. Received: {options.cache.max_bytes}"
        )


def _check_channels(options: LoadOptions) -> None:
    arrays, where = options.split.arrays, f"split {options.split.name!r} of {options.shard_set.root}"
    if arrays is not None and options.channels != arrays.channels:
        raise ValueError(
            f"`channels` must be {arrays.channels}. Received: {options.channels}; {where} holds arrays, {arrays}, "
            "which are not converted"
        )
    if arrays is None and options.channels not in (1, 3):
        raise ValueError(
            f"`channels` must be 1 (grey) or 3 (RGB). Received: {options.channels}; {where} holds pictures, and only "
            "arrays (.npy) have other numbers of channels"
        )


def _check_split(options: LoadOptions) -> None:
    if options.split.samples == 0:
        raise ValueError(
            f"Split {options.split.name!r} of {options.shard_set.root} holds no samples; there is nothing to read"
        )
    if options.view in WITH_LABELS and options.shard_set.classes is None:
        raise ValueError(
            f"View {options.view!r} needs labels, but {options.shard_set.root} was made without classes; "
            "use view='pretrain', or make the shards again from a folder with one folder per class"
        )
