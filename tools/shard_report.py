"""`report.json`: what happened while a shard set was made; beside the bytes that are always the same.

For each split: how many images were skipped, converted or noted, and which; how long it took. The lists are the
same for any number of workers; the times are not, which is why they are here and nowhere else.
"""

import collections
import json
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from pipeline.image_files import NOTES
from pipeline.locations import Location, join, read_location
from pipeline.writing import WrittenShard

REPORT_NAME = "report.json"
# Names listed for each kind of note; the counts are of all.
LISTED = 10_000


def split_report(written: Sequence[WrittenShard], times: dict[str, Any]) -> dict[str, Any]:
    """The report on one split.

    Args:
        written: its shards, in order.
        times: seconds, rates and the like.
    """
    skipped = [sample for shard in written for sample in shard.skipped]
    noted = collections.defaultdict(list)
    for shard in written:
        for note, names in shard.noted.items():
            noted[note] += names
    counts = total_counts(written)
    del counts["skipped"]
    return {
        "samples": sum(shard.shard.samples for shard in written),
        "skipped": {
            "count": len(skipped),
            "samples": [{"name": name, "reason": reason} for name, reason in skipped[:LISTED]],
        },
        "notes": {
            note: {"count": count, "meaning": NOTES[note], "samples": noted[note][:LISTED]}
            for note, count in sorted(counts.items())
        },
        **times,
    }


def write_report(root: str, splits: dict[str, dict[str, Any]]) -> None:
    """Adds the reports on some splits to the report of a shard set, whose form was checked before the run."""
    path = join(root, REPORT_NAME)
    before = json.loads(read_location(Location(path))) if storage.exists(path) else {"splits": {}}
    content = {"splits": {**before["splits"], **splits}}
    storage.write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")


def total_counts(written: Sequence[WrittenShard]) -> dict[str, int]:
    """How many samples were skipped, and how many have each kind of note."""
    total = collections.Counter(skipped=sum(len(shard.skipped) for shard in written))
    for shard in written:
        total.update(shard.notes)
    return dict(total)
