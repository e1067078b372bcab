"""Which accuracies of a transfer study make a line: of one protocol, data set and model, at different places.

For the plots and tables of tools.transfer_study and tools.report: accuracy against labels, trainable blocks (the
paper's Figure 9) and masking ratio (Figure 5), beside what the paper published.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from keras_mae.recipes.published import PUBLISHED
from tools.ablation_tables import TABLES
from tools.transfer_plan import PROBED, SCRATCH, TUNED

# Name of a panel, what its axis shows of `Measured`, title and label of the axis
PANELS = {
    "labels": ("num_labels", "Accuracy against labels", "labelled training images (logarithmic)"),
    "blocks": ("trainable_blocks", "Partial fine-tuning", "fine-tuned blocks (0: the head alone; .5: an MLP)"),
    "ratios": ("mask_ratio", "Masking ratio", "masking ratio of pre-training, %"),
}
PROTOCOLS = {"labels": (TUNED, SCRATCH, PROBED), "blocks": (TUNED,), "ratios": (TUNED, PROBED)}
PUBLISHED_BY = "published: ViT-L/16, ImageNet-1K"


class Measured(NamedTuple):
    """An accuracy.

    Attributes:
        protocol: TUNED, SCRATCH or PROBED.
        num_labels: labelled images that it was trained on.
        mask_ratio: of the encoder's pre-training; None: unknown, or from scratch.
        trainable_blocks: of partial fine-tuning; None: all was trained.
        seed: of the training.
        accuracy: in percent.
        about: data and model, where there may be several.
    """

    protocol: str
    num_labels: int
    mask_ratio: float | None
    trainable_blocks: float | None
    seed: int
    accuracy: float
    about: str = ""


class Series(NamedTuple):
    """A line of a panel.

    Attributes:
        label: in the legend.
        protocol: decides the colour.
        points: accuracies in percent, one a seed, by the place on the axis, in its order.
        is_published: whether others measured it.
    """

    label: str
    protocol: str
    points: dict[float | None, list[float]]
    is_published: bool = False


class Panel(NamedTuple):
    """What is drawn together.

    Attributes:
        name: one of `PANELS`.
        series: ours, and behind them what is published.
        whole: labelled images there are, of which some are a share; None: not said.
    """

    name: str
    series: list[Series]
    whole: int | None = None


def make_panels(measured: Sequence[Measured], whole: int | None = None) -> list[Panel]:
    """The panels that have a series, with what the paper published for them.

    Args:
        measured: accuracies.
        whole: labelled images there are, of which some are a share; None: not said.
    """
    panels = [Panel(name, _own_series(name, measured), whole) for name in PANELS]
    return [panel._replace(series=panel.series + published_series(panel.name)) for panel in panels if panel.series]


def published_series(name: str) -> list[Series]:
    """What the paper has of a panel's kind: ViT-L/16, 800 epochs. All blocks, and 75%, are of its Table 1."""
    usual = next(row for row in TABLES["1f"].rows if row.name == "random_75")
    if name == "blocks":
        start = "partial fine-tuning of "
        points = {
            float(row.protocol.removeprefix(start).split()[0]): [row.value]
            for row in PUBLISHED
            if row.protocol.startswith(start)
        }
        label = f"{PUBLISHED_BY} (0: linear probe)"
        return [Series(label, TUNED, {**points, None: [usual.finetuned]}, True)]
    if name == "ratios":
        tuned, probed = ({0.75: [value]} for value in (usual.finetuned, usual.linear))
        return [
            Series(f"{PUBLISHED_BY}, {TUNED}", TUNED, tuned, True),
            Series(f"{PUBLISHED_BY}, {PROBED}", PROBED, probed, True),
        ]
    return []


def shown_in_panels(measured: Sequence[Measured]) -> set[Measured]:
    """The accuracies that some panel shows."""
    series = (points for name in PANELS for points in _groups(name, measured).values())
    return {one for points in series for alike in points.values() for one in alike}


def _groups(name: str, measured: Sequence[Measured]) -> dict[Measured, dict[float | None, list[Measured]]]:
    # What differs in nothing but the place on the axis and the seed, by the place: two of them at least.
    axis = PANELS[name][0]
    groups: dict[Measured, dict[float | None, list[Measured]]] = {}
    for one in measured:
        if one.protocol in PROTOCOLS[name] and not (axis == "mask_ratio" and one.mask_ratio is None):
            group = one._replace(**{axis: 0}, seed=0, accuracy=0)
            groups.setdefault(group, {}).setdefault(getattr(one, axis), []).append(one)
    return {group: points for group, points in groups.items() if len(points) > 1}


def _own_series(name: str, measured: Sequence[Measured]) -> list[Series]:
    groups = _groups(name, measured)
    return [
        Series(
            _label(name, group, list(groups)),
            group.protocol,
            {place: [one.accuracy for one in points[place]] for place in sorted(points, key=_order)},
        )
        for group, points in groups.items()
    ]


def _order(place: float | None) -> float:
    return float("inf") if place is None else place  # all blocks come last


def _label(name: str, group: Measured, groups: Sequence[Measured]) -> str:
    # What the axis does not say: the labels always, the rest where it tells lines from each other.
    words = [group.protocol]
    if name != "labels":
        words.append(f"{group.num_labels:,} labels")
    texts = {
        "mask_ratio": lambda ratio: "unknown ratio" if ratio is None else f"masked {100 * ratio:g}%",
        "trainable_blocks": lambda blocks: f"blocks: {'all' if blocks is None else format(blocks, 'g')}",
        "about": str,
    }
    for field, text in texts.items():
        if len({getattr(other, field) for other in groups if other.protocol == group.protocol}) > 1:
            words.append(text(getattr(group, field)))
    return ", ".join(words)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the bar of several seeds: least and largest of two, mean minus and plus standard deviation of more."""
    if len(values) < 3:
        return min(values), max(values)
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return mean - deviation, mean + deviation


def ticks_of(series: Sequence[Series]) -> list[float | None]:
    """The places on the axis that some series have, in its order."""
    return sorted({place: None for one in series for place in one.points}, key=_order)


def tick_text(panel: Panel, tick: float | None, end: str = "\n") -> str:
    """A place on the axis in words, with `end` before the share of the labels."""
    if panel.name == "labels":
        return f"{tick:,}" + (f"{end}{100 * tick / panel.whole:.3g}%" if panel.whole else "")
    return "all" if tick is None else f"{tick:g}" if panel.name == "blocks" else f"{100 * tick:g}"


def table_rows(panel: Panel) -> Iterator[tuple[str, list[str]]]:
    """The place on the axis, and a cell of text for each series of ours."""
    own = [series for series in panel.series if not series.is_published]
    for tick in ticks_of(own):
        yield tick_text(panel, tick, " = "), [cell_text(series.points.get(tick)) for series in own]


def cell_text(values: Sequence[float] | None) -> str:
    """Mean and spread of some seeds' accuracies."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}%"
    low, high = spread(values)
    mean = statistics.mean(values)
    return f"{mean:.1f}% ({low:.1f} to {high:.1f})" if len(values) == 2 else f"{mean:.1f}% ± {high - mean:.1f}"
