"""The robustness suite of keras_mae.evaluate: finds its shard sets, measures one after the other, and goes on later.

DATA_ROOT/imagenet-a  imagenet-r  imagenet-sketch  imagenet-v2      a shard set each
DATA_ROOT/imagenet-c                                                one shard set of splits gaussian_noise-1, ...
DATA_ROOT/imagenet-c/gaussian_noise/1, ...                          or a shard set for each
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pipeline
from keras_mae.evaluation.class_map import ClassMap
from keras_mae.evaluation.robustness import (
    ALEXNET_ERRORS,
    CORRUPTED,
    SETS,
    SEVERITIES,
    RobustnessSet,
    corruption_errors,
    match_classes,
    mean_corruption_error,
)
from pipeline import storage
from pipeline.locations import join
from pipeline.manifest import MANIFEST_NAME, ShardSet, Split


class Part(NamedTuple):
    """A split to be measured.

    Attributes:
        name: in the results: "imagenet-a", "imagenet-c/fog/3", ...
        shard_set: where it is.
        split: of it.
        class_map: see `classification.read_answers`.
        resize_size: short side in pixels before the centre crop; None: by the rule of the pipeline.
    """

    name: str
    shard_set: ShardSet
    split: Split
    class_map: ClassMap | None
    resize_size: int | None

    def reads(self) -> dict:
        """Arguments of `pipeline.load`."""
        return {"shards": self.shard_set, "split": self.split.name, "resize_size": self.resize_size}

    def identity(self) -> dict:
        """What of the results of a part tells them from those of another: JSON values."""
        return {
            "split": self.split.name,
            "data_fingerprint": self.shard_set.fingerprint(self.split.name),
            "resize_size": self.resize_size,
            **({} if self.class_map is None else {"compared_classes": len(self.class_map.columns)}),
        }


def parse_places(data_root: str | None, words: Sequence[str]) -> dict[str, str]:
    """Where the sets of the suite are to be looked for: by name, a folder or URL.

    Args:
        data_root: a folder with one folder for each set; None: only those that `words` name.
        words: NAME=PLACE; they go before `data_root`.

    Raises:
        ValueError: no place at all, an unknown name, or a place that is not there.
    """
    places = {} if data_root is None else {name: join(data_root, name) for name in SETS}
    for word in words:
        name, found, place = word.partition("=")
        if not found or not place or name not in SETS:
            raise ValueError(f"suite_data takes NAME=SHARDS, with a NAME of {', '.join(SETS)}. Received: {word!r}")
        if not storage.exists(place):
            raise ValueError(f"suite_data says that {name} is at {place}, but nothing is there.")
        places[name] = place
    if not places:
        raise ValueError("The suite needs --data_root=DIR with its shard sets, or --suite_data=NAME=SHARDS,...")
    return places


def find_parts(
    places: dict[str, str], known_classes: Sequence[str], image_size: tuple[int, int], resize_size: int | None
) -> tuple[list[Part], list[str]]:
    """The parts of the suite that are there, and the names of those that are not.

    Args:
        places: of `parse_places`.
        known_classes: names of the model's classes, in its order.
        image_size: height and width in pixels that the model takes.
        resize_size: of sets whose images are not cropped already.

    Raises:
        ValueError: there is none, a shard set is damaged, or has classes that the model does not know.
    """
    parts, missing = [], []
    for name, kind in SETS.items():
        size = min(image_size) if kind.is_cropped else resize_size
        find = _find_corrupted if name == CORRUPTED else _find_plain
        for part_name, found in find(name, places.get(name)):
            if found is None:
                missing.append(part_name)
            else:
                parts.append(Part(part_name, *found, _class_map(*found, kind, known_classes), size))
    if not parts:
        raise ValueError(f"None of the suite's shard sets is there. Looked at: {', '.join(places.values())}")
    return parts, missing


def measure_suite(
    parts: Iterable[Part], missing: Sequence[str], earlier: dict, measure: Callable[[Part], dict], save: Callable
) -> dict:
    """Measures what has not been measured yet.

    Args:
        parts, missing: of `find_parts`.
        earlier: results of this suite and model that an earlier process has saved; {} for none.
        measure: figures of a part.
        save: is called with all results so far after each part.

    Returns:
        `sets`: the figures of each part; `corruption_errors` and `mce`, relative to AlexNet (1 is as bad), `mce` None
        where a part of it is missing; `not_measured`: the names of missing parts.
    """
    sets: dict = {}
    for part in parts:
        figures, identity = earlier.get("sets", {}).get(part.name), part.identity()
        if figures is None or any(figures.get(name) != value for name, value in identity.items()):
            print(f"{part.name}: {part.split.samples} images", file=sys.stderr, flush=True)
            figures = {**measure(part), "data": part.shard_set.root, **identity}
        sets[part.name] = figures
        save(suite_results(sets, missing))
    return suite_results(sets, missing)


def suite_results(sets: dict, missing: Sequence[str]) -> dict:
    """What `measure_suite` returns."""
    accuracies: dict = {}
    for name, figures in sets.items():
        if name.startswith(f"{CORRUPTED}/"):
            _, corruption, severity = name.split("/")
            accuracies.setdefault(corruption, {})[int(severity)] = figures["accuracy"]
    errors = corruption_errors(accuracies)
    return {
        "suite": "robustness",
        "sets": dict(sets),
        "corruption_errors": errors,
        "mce": mean_corruption_error(errors),
        "not_measured": list(missing),
    }


def suite_text(results: dict) -> str:
    """The suite's results for people: a line for each set; a missing one says so."""
    lines = []
    for name, kind in SETS.items():
        if name == CORRUPTED:
            value = "not measured" if results["mce"] is None else f"{100 * results['mce']:.1f}% (lower is better)"
            lines.append(f"{kind.title + ' mCE':24}{value}")
        elif name in results["sets"]:
            figures = results["sets"][name]
            lines.append(f"{kind.title:24}top-1 {100 * figures['accuracy']:.2f}%  ({figures['samples']} images)")
        else:
            lines.append(f"{kind.title:24}not measured")
    lines += [f"  {name:22}CE {100 * error:.1f}%" for name, error in results["corruption_errors"].items()]
    missing = [name for name in results["not_measured"] if name.startswith(f"{CORRUPTED}/")]
    if missing:
        lines.append(f"  missing of {SETS[CORRUPTED].title}: {', '.join(name.split('/', 1)[1] for name in missing)}")
    return "\n".join(lines)


def _find_plain(name: str, place: str | None):
    yield name, None if place is None or not storage.exists(place) else _only_split(pipeline.load_manifest(place))


def _find_corrupted(name: str, place: str | None):
    whole = place is not None and storage.exists(join(place, MANIFEST_NAME))
    shard_set = pipeline.load_manifest(place) if whole else None
    for corruption in ALEXNET_ERRORS:
        for severity in SEVERITIES:
            part_name = f"{name}/{corruption}/{severity}"
            if shard_set is not None:
                split = shard_set.splits.get(f"{corruption}-{severity}")
                yield part_name, None if split is None else (shard_set, split)
            else:
                folder = None if place is None else join(join(place, corruption), str(severity))
                yield from ((part_name, found) for _, found in _find_plain(part_name, folder))


def _only_split(shard_set: ShardSet) -> tuple[ShardSet, Split]:
    return shard_set, shard_set.split("val" if "val" in shard_set.splits else None)


def _class_map(shard_set: ShardSet, split: Split, kind: RobustnessSet, known: Sequence[str]) -> ClassMap:
    if not shard_set.classes:
        raise ValueError(f"{os.fspath(shard_set.root)} has no classes; make its shards from a folder for each class.")
    return match_classes(known, shard_set.classes, kind)
