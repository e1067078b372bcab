"""Readers of others give back what went into the shards, bit for bit: webdataset, DALI, wids, timm.

webdataset and timm themselves read here. DALI and wids cannot be installed beside what this project needs; for
them stand readers of a few lines, written from the descriptions of the two formats.
"""

import bisect
import io
import itertools
import json
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.sources import ListSource
from tools.shard_plan import ShardOptions
from tools.sharding import make_shards

CLASSES = ("cat", "dog", "emu")
EXTENSION_OF = {".jpg": "jpg", ".JPEG": "jpg", ".png": "png", ".webp": "webp"}


@pytest.fixture
def files(images, tmp_path):
    """What should be read: for each sample its files, by extension, in the order of their extensions."""
    (tmp_path / "maps").mkdir()
    samples = {}
    for number, path in enumerate(sorted(images.rglob("*.*"))):
        name, label_map = path.relative_to(tmp_path).as_posix(), f"maps/{number}.png"
        Image.new("L", (9, 8), number).save(tmp_path / label_map)
        members = {
            "cls": str(CLASSES.index(path.relative_to(images).parts[0])).encode(),
            "json": json.dumps({"source": name, "map": label_map, "caption": f"No. {number}, naïve 'a b'"}).encode(),
            "seg.png": (tmp_path / label_map).read_bytes(),
            EXTENSION_OF[path.suffix]: path.read_bytes(),
        }
        samples[name] = dict(sorted(members.items()))
    return samples


@pytest.fixture
def shards(files, tmp_path):
    """Folder of a shard set of them."""
    rows = [json.loads(members["json"]) | {"label": int(members["cls"])} for members in files.values()]
    lines = [json.dumps({"image": row.pop("source"), **row}) for row in rows]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    source = ListSource(tmp_path / "list.jsonl", classes=CLASSES, members={"seg.png": "map"})
    make_shards(source, tmp_path / "shards", ShardOptions(shard_mb=0.05), workers=1, log=str)
    return tmp_path / "shards"


def tars_of(shards):
    return sorted(map(str, shards.glob("train-*.tar")))


def brace_url(shards):
    last = len(tars_of(shards)) - 1
    assert last > 0
    return f"{shards}/train-{{000000..{last:06d}}}.tar"


def by_source(samples):
    """Samples in the order of their names; each name has to be there once."""
    named = sorted((json.loads(sample["json"])["source"], sample) for sample in samples)
    assert len(dict(named)) == len(named)
    return [list(sample.items()) for _, sample in named]


def expected(files):
    return [list(files[name].items()) for name in sorted(files)]


@pytest.mark.parametrize("urls", [brace_url, tars_of])
def test_webdataset_reads_every_file_of_every_sample(files, shards, urls):
    samples = list(webdataset.WebDataset(urls(shards), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(30)]
    read = ({name: data for name, data in sample.items() if not name.startswith("__")} for sample in samples)
    assert by_source(read) == expected(files)


def read_by_dali_index(tar, index):
    """Samples as DALI finds them, whose parser looks at the index and never at the tar's headers.

    After "v1.2 N", N > 0, it reads N lines of EXTENSION OFFSET SIZE NAME, all between blanks; offsets are whole
    blocks of 512 bytes. Of the name it makes nothing but a text.
    """
    with open(tar, "rb") as tar_file, open(index) as index_file:
        version, count = next(index_file).split()
        assert version == "v1.2" and int(count) > 0
        for _ in range(int(count)):
            sample, fields = {}, iter(next(index_file).split())
            for extension, offset, size, name in zip(*[fields] * 4, strict=True):
                assert int(offset) % 512 == 0 and name.endswith(f".{extension}")
                tar_file.seek(int(offset))
                sample[extension] = tar_file.read(int(size))
            yield sample
        assert index_file.read() == ""


def test_dalis_index_leads_to_every_file_of_every_sample(files, shards):
    samples = [sample for tar in tars_of(shards) for sample in read_by_dali_index(tar, tar.replace(".tar", ".idx"))]
    assert by_source(samples) == expected(files)


def test_dalis_index_calls_files_as_the_tar_does(shards):
    for tar in tars_of(shards):
        with open(tar.replace(".tar", ".idx")) as index, tarfile.open(tar) as members:
            assert index.read().split()[2:][3::4] == members.getnames()


def test_the_wids_index_has_the_fields_that_wids_reads(shards):
    index = json.loads((shards / "train.wids.json").read_bytes())
    assert (index["__kind__"], index["wids_version"], index["name"]) == ("wids-shard-index-v1", 1, "train")
    assert [str(shards / shard["url"]) for shard in index["shardlist"]] == tars_of(shards)
    assert [(shards / shard["url"]).stat().st_size for shard in index["shardlist"]] == [
        shard["filesize"] for shard in index["shardlist"]
    ]
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 30


def read_by_wids_index(index_file, number):
    """Sample `number` as wids finds it: by the sums of nsamples, then by its place in the tar beside the index."""
    shardlist = json.loads(index_file.read_bytes())["shardlist"]
    ends = list(itertools.accumulate(shard["nsamples"] for shard in shardlist))
    shard = bisect.bisect_right(ends, number)
    place = number - (ends[shard - 1] if shard else 0)
    with tarfile.open(index_file.parent / shardlist[shard]["url"]) as tar:
        groups = [list(group) for _, group in itertools.groupby(tar, lambda member: member.name.split(".")[0])]
        return {member.name.split(".", 1)[1]: tar.extractfile(member).read() for member in groups[place]}


def test_the_wids_index_leads_to_every_file_of_every_sample(files, shards):
    samples = [read_by_wids_index(shards / "train.wids.json", number) for number in range(30)]
    assert by_source(samples) == expected(files)


@pytest.mark.timm
@pytest.mark.parametrize("is_training", [False, True])
def test_timm_reads_every_image_with_its_label(files, shards, is_training):
    from timm.data import create_dataset

    dataset = create_dataset("wds/", root=str(shards), split="train", is_training=is_training, batch_size=1)
    read = [(label, np.asarray(image).tobytes()) for image, label in dataset]
    assert len(dataset) == len(read) == 30
    assert sorted(read) == sorted((int(sample["cls"]), rgb_bytes(sample)) for sample in files.values())


def rgb_bytes(sample):
    image = next(sample[extension] for extension in ("jpg", "png", "webp") if extension in sample)
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).tobytes()
