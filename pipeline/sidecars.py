"""Files that let other readers of WebDataset tars find their way: wids and timm.

They are functions of the manifest alone, so they can be checked and made again at any time:

    SPLIT.wids.json    wids v1, for `wids.ShardListDataset`
    _info.json         for timm's `wds` reader: `timm.data.create_reader("wds/", root=SHARDS, split="train")`

DALI's index lies beside each tar (`shard_index`). wids' md5sum is optional, and its reader never looks at it: it
is left out, because the manifest has the stronger sha256. This module imports no TensorFlow.
"""

import json

from pipeline.manifest import ShardSet, Split

TIMM_NAME = "_info.json"


def wids_name(split: str) -> str:
    """Name of the wids index of a split."""
    return f"{split}.wids.json"


def sidecar_files(shard_set: ShardSet) -> dict[str, bytes]:
    """Name and contents of each sidecar of a shard set."""
    files = {wids_name(split.name): _as_json(_wids_index(split)) for split in shard_set.splits.values()}
    files[TIMM_NAME] = _as_json(_timm_info(shard_set))
    return files


def _wids_index(split: Split) -> dict:
    shards = [{"url": shard.file, "nsamples": shard.samples, "filesize": shard.bytes} for shard in split.shards]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": split.name, "shardlist": shards}


def _timm_info(shard_set: ShardSet) -> dict:
    return {
        "splits": {
            split.name: {
                "name": split.name,
                "num_samples": split.samples,
                "filenames": [shard.file for shard in split.shards],
                "shard_lengths": [shard.samples for shard in split.shards],
            }
            for split in shard_set.splits.values()
        }
    }


def _as_json(content: dict) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"
