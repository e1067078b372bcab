"""How tools.inspect_shards shows what it found: the table that it prints, and the figure that it draws."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from tools.inspect_shards import Inspection, SplitInspection

NUM_THUMBNAILS = 48
THUMBNAIL_SIDE = 160  # pixels
NUM_NAMED = 5  # classes, or damaged images, that the table names
# What the less telling of Pillow's names of colour spaces mean
COLOURS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "I;16": "16-bit grey",
    "P": "palette",
    "RGBA": "RGB with transparency",
}


def crop_thumbnail(image: Image.Image) -> np.ndarray:
    """The middle square of an image: uint8 (side, side, 3), where side is THUMBNAIL_SIDE or a small image's own.

    Raises:
        Exception: of almost any kind, if the image's contents are damaged.
    """
    image.draft("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))  # a JPEG may be decoded smaller, which is faster
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert("RGB") would clip at 255
    side = min(THUMBNAIL_SIDE, *image.size)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC))


def byte_text(num_bytes: float) -> str:
    """A number of bytes as "123 B", "4.5 KB", "678.9 MB", ..."""
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def table(inspection: "Inspection") -> str:
    """What was found, as text: a block of lines for each split."""
    blocks = []
    for name, split in inspection.splits.items():
        lines = [
            f"{name}: {_number_of('sample', split.num_samples)} in {_number_of('shard', split.num_shards)}, "
            f"{byte_text(split.tar_bytes)}",
            *_class_lines(inspection, name),
            _line("stored as", _counts_text(split.extensions)),
            _cells_line("", ("mean", "min", "5%", "50%", "95%", "max")),
            _statistics_line("size of a file", split.image_bytes, byte_text),
            *_image_lines(split),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _line(label: str, text: str) -> str:
    return f"  {label:<18}{text}".rstrip()


def _counts_text(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name}: {count:,}" for name, count in ordered) or "none"


def _cells_line(label: str, cells: Iterable[str]) -> str:
    return _line(label, "".join(f"{cell:>10}" for cell in cells))


def _statistics_line(label: str, values: np.ndarray, text: Callable[[float], str] = "{:,.0f}".format) -> str:
    if not len(values):
        return _cells_line(label, 6 * ["-"])
    return _cells_line(label, map(text, [values.mean(), *np.percentile(values, [0, 5, 50, 95, 100])]))


def _number_of(what: str, number: int) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _class_lines(inspection: "Inspection", name: str) -> Iterator[str]:
    if not inspection.classes:
        yield _line("classes", "none")
        return
    counts = inspection.class_counts(name)
    order = np.argsort(-counts, kind="stable")

    def named(labels: Iterable[int]) -> str:
        return ", ".join(f"{_printable(inspection.classes[label], 40)}: {counts[label]:,}" for label in labels)

    span = f"{counts.min():,} to {counts.max():,} samples" if counts.min() < counts.max() else f"{counts[0]:,} each"
    yield _line("classes", f"{len(counts):,}, with {span}")
    if len(counts) <= 2 * NUM_NAMED:
        yield _line("", named(order))
    else:
        yield _line("  largest", named(order[:NUM_NAMED]))
        yield _line("  smallest", named(order[: -NUM_NAMED - 1 : -1]))
    split = inspection.splits[name]
    yield _line("labels missing", f"{split.num_unlabelled:,}")
    if split.num_bad_labels:
        yield _line("labels wrong", f"{split.num_bad_labels:,}, expected an integer from 0 to {len(counts) - 1}")


def _image_lines(split: "SplitInspection") -> Iterator[str]:
    yield _statistics_line("width, pixels", split.widths)
    yield _statistics_line("height, pixels", split.heights)
    yield _statistics_line("short side, pixels", np.minimum(split.widths, split.heights))
    yield _statistics_line("width : height", split.widths / split.heights, "{:.2f}".format)
    yield _line("contents", _counts_text(Counter(image.format for image in split.opened)))
    yield _line("colours", _counts_text(Counter(COLOURS.get(image.mode, image.mode) for image in split.opened)))
    if num_turned := sum(image.is_turned for image in split.opened):
        yield _line("turned by EXIF", f"{num_turned:,}: viewers turn them, readers do not")
    yield _line("damaged", f"{len(split.damaged):,}")
    for sentence in split.damaged[:NUM_NAMED]:
        yield _line("", sentence)
    if len(split.damaged) > NUM_NAMED:
        yield _line("", f"and {len(split.damaged) - NUM_NAMED:,} more")
    if split.num_sampled < split.num_samples:
        yield _line("", f"(pixels, contents, colours and damage: of {split.num_sampled:,} random images)")


# The figure, in inches: a title, charts in a row, the contact sheet below.
WIDTH, MARGIN, TITLE_HEIGHT = 16.0, 0.4, 1.15
CHART_HEIGHT, CHART_LABELS, CHART_GAP, CHART_FOOT = 2.7, 0.55, 0.3, 0.6
SHEET_HEAD, SHEET_COLUMNS, SHEET_GAP, NAME_HEIGHT = 0.35, 12, 0.1, 0.13
CELL = (WIDTH - 2 * MARGIN + SHEET_GAP) / SHEET_COLUMNS  # a thumbnail and the gap to the next
DOTS_PER_INCH = 100
MAX_BINS = 40
MAX_TICKS = 7
POWERS_OF_2 = [2.0**power for power in range(-20, 21)]
SIDES = sorted([*POWERS_OF_2, *(1.5 * power for power in POWERS_OF_2)])  # ..., 256, 384, 512, ...
NUM_CLASS_TICKS = 16  # more classes than that are not named
COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#c53030", "#4a5568")
GREY = "#4a5568"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#a0aec0",
    "axes.labelcolor": GREY,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": "#1a202c",
    "text.parse_math": False,
    "legend.frameon": False,
}


def draw_inspection(inspection: "Inspection", file: BinaryIO) -> None:
    """Writes the figure as PNG: charts of all splits, and a contact sheet of the largest."""
    charts = [_draw_bytes, _draw_sizes, _draw_aspect_ratios, *([_draw_classes] if inspection.classes else [])]
    sheet_top = TITLE_HEIGHT + CHART_HEIGHT + CHART_FOOT + SHEET_HEAD
    largest = max(inspection.splits, key=lambda name: inspection.splits[name].num_samples)
    sheet_height = _sheet_height(inspection.splits[largest], inspection.classes)
    height = sheet_top + sheet_height + MARGIN
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")  # a class name may be in letters that the font lacks
        figure = Figure((WIDTH, height), dpi=DOTS_PER_INCH, facecolor="white")

        def add_axes(left: float, top: float, width: float, depth: float) -> Axes:
            return figure.add_axes((left / WIDTH, 1 - (top + depth) / height, width / WIDTH, depth / height))

        _draw_titles(figure, height, inspection)
        slot = (WIDTH - 2 * MARGIN + CHART_GAP) / len(charts)
        for number, draw_chart in enumerate(charts):
            left = MARGIN + number * slot + CHART_LABELS
            draw_chart(add_axes(left, TITLE_HEIGHT, slot - CHART_LABELS - CHART_GAP, CHART_HEIGHT), inspection)
        if inspection.splits[largest].thumbnails:
            _draw_sheet(add_axes(MARGIN, sheet_top, WIDTH - 2 * MARGIN, sheet_height), inspection, largest)
        figure.savefig(file, format="png")


def _draw_titles(figure: Figure, height: float, inspection: "Inspection") -> None:
    splits = inspection.splits
    facts = [
        f"{sum(split.num_samples for split in splits.values()):,} images",
        byte_text(sum(split.tar_bytes for split in splits.values())),
        f"{len(inspection.classes):,} classes" if inspection.classes else "no classes",
    ]
    title = _printable(os.path.basename(os.path.abspath(inspection.root)), 60)
    figure.text(MARGIN / WIDTH, 1 - 0.47 / height, title, size=17, weight="bold")
    figure.text(MARGIN / WIDTH, 1 - 0.73 / height, " · ".join(facts), size=10.5, color=GREY)
    names = [f"{name}: {split.num_samples:,}" for name, split in splits.items()]
    handles = [Patch(color=_color(number), alpha=0.6) for number in range(len(names))]
    corner = (1 - MARGIN / WIDTH, 1 - 0.3 / height)
    figure.legend(handles, names, loc="upper right", bbox_to_anchor=corner, ncols=6, borderaxespad=0, fontsize=10)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _printable(name: str, length: int) -> str:
    # Names of folders and classes need not be valid text, nor short.
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _draw_bytes(axes: Axes, inspection: "Inspection") -> None:
    decades = [10**power for power in range(13)]
    ticks = [sorted(scale * decade for scale in (1, 2, 5) for decade in decades), decades]
    values = {name: split.image_bytes for name, split in inspection.splits.items()}
    _draw_histogram(axes, values, ticks, lambda num_bytes: byte_text(num_bytes).replace(".0", ""))
    axes.set_title("Bytes of an image")


def _draw_aspect_ratios(axes: Axes, inspection: "Inspection") -> None:
    ticks = [sorted([*POWERS_OF_2, 3 / 4, 4 / 3]), POWERS_OF_2, POWERS_OF_2[::2]]
    ratios = {name: split.widths / split.heights for name, split in inspection.splits.items()}
    _draw_histogram(axes, ratios, ticks, _ratio_text)
    axes.set_title("Width : height")


def _ratio_text(ratio: float) -> str:
    width, height = Fraction(ratio).limit_denominator(1 << 20).as_integer_ratio()
    return f"{width}:{height}"


def _draw_histogram(
    axes: Axes,
    values: Mapping[str, np.ndarray],
    ticks: Sequence[Sequence[float]],
    text: Callable[[float], str],
) -> None:
    limits = _limits(values.values())
    num_values = max(map(len, values.values()))
    edges = np.geomspace(*limits, min(MAX_BINS, max(10, 2 * math.isqrt(num_values))) + 1)
    for number, found in enumerate(values.values()):
        counts = np.histogram(np.clip(found, *limits), edges)[0]
        _draw_stairs(axes, 100 * counts / max(len(found), 1), edges, number)
    _make_logarithmic(axes, "x", limits, ticks, text)
    axes.set_ylabel("% of images")


def _draw_stairs(axes: Axes, values: np.ndarray, edges: np.ndarray, number: int) -> None:
    axes.stairs(values, edges, fill=True, alpha=0.3, color=_color(number))
    axes.stairs(values, edges, color=_color(number), linewidth=1.2)


def _limits(values: Iterable[np.ndarray]) -> tuple[float, float]:
    # Of a logarithmic axis that shows all values, a factor of four at least: equal values shall look equal.
    found = np.concatenate([np.ones(0), *values])
    found = found[found > 0]  # an empty file has 0 bytes
    low, high = (found.min(), found.max()) if len(found) else (1.0, 1.0)
    middle, half = math.sqrt(low * high), max(1.1 * math.sqrt(high / low), 2)
    return middle / half, middle * half


def _make_logarithmic(
    axes: Axes,
    which: str,
    limits: tuple[float, float],
    ticks: Sequence[Sequence[float]],
    text: Callable[[float], str],
) -> None:
    # Of the lists of ticks, from fine to coarse, it takes the first that leaves room to read them.
    shown = [[tick for tick in some if limits[0] <= tick <= limits[1]] for some in ticks]
    chosen = next((some for some in shown if len(some) <= MAX_TICKS), shown[-1])
    axes.set(**{f"{which}scale": "log"})
    axes.set(**{f"{which}lim": limits})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(chosen, [text(tick) for tick in chosen])
    axis.set_ticks([], minor=True)


def _draw_sizes(axes: Axes, inspection: "Inspection") -> None:
    splits = inspection.splits.values()
    limits = _limits([side for split in splits for side in (split.widths, split.heights)])
    axes.plot(limits, limits, color="#a0aec0", linewidth=0.8, linestyle=":")  # squares
    for number, split in enumerate(splits):
        sizes, counts = np.unique(np.stack([split.widths, split.heights]), axis=1, return_counts=True)
        areas = 6 + 250 * counts / max(counts.sum(), 1)  # points squared
        axes.scatter(*sizes, areas, color=_color(number), alpha=0.5, linewidths=0)
    for which in ("x", "y"):
        _make_logarithmic(axes, which, limits, [SIDES, POWERS_OF_2, POWERS_OF_2[::2]], lambda side: f"{side:g}")
    axes.set(title="Sizes in pixels", xlabel="width", ylabel="height")


def _draw_classes(axes: Axes, inspection: "Inspection") -> None:
    counts = np.stack([inspection.class_counts(name) for name in inspection.splits])  # (splits, classes)
    num_classes = counts.shape[1]
    order = np.argsort(-counts.sum(axis=0), kind="stable")
    are_named = num_classes <= NUM_CLASS_TICKS
    for number, found in enumerate(counts):
        # Without names, each split has an order of its own: another's would only look like noise.
        _draw_stairs(axes, found[order] if are_named else np.sort(found)[::-1], np.arange(num_classes + 1), number)
    highest = counts.max(axis=1)
    if highest.max() > 20 * max(highest.min(), 1):  # else the small split would be a line at the bottom
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.set(title="Samples of a class", ylabel="samples", xlim=(0, num_classes))
    if not are_named:
        axes.set_xlabel("classes, largest first")
        return
    names = [_printable(inspection.classes[label], 11) for label in order]
    angle = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticks(np.arange(num_classes) + 0.5, names, **angle)


def _row_height(classes: Sequence[str] | None) -> float:
    return CELL + (NAME_HEIGHT if classes else 0)


def _sheet_height(split: "SplitInspection", classes: Sequence[str] | None) -> float:
    return -(-len(split.thumbnails) // SHEET_COLUMNS) * _row_height(classes)


def _draw_sheet(axes: Axes, inspection: "Inspection", name: str) -> None:
    # Coordinates are inches from the upper left corner.
    split, classes = inspection.splits[name], inspection.classes
    side = CELL - SHEET_GAP
    for number, (pixels, label) in enumerate(split.thumbnails):
        row, column = divmod(number, SHEET_COLUMNS)
        left, top = column * CELL, row * _row_height(classes)
        smoothing = "nearest" if len(pixels) < THUMBNAIL_SIDE else "antialiased"
        axes.imshow(pixels, extent=(left, left + side, top + side, top), interpolation=smoothing, aspect="auto")
        if classes:
            text = _printable(classes[label], 18) if label >= 0 else "no label"
            axes.text(left, top + side + 0.03, text, size=7.5, color=GREY, va="top")
    axes.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(_sheet_height(split, classes), 0))
    axes.set_title(f"{_number_of('random image', len(split.thumbnails))} of {name}, cut to the middle square")
    axes.set_axis_off()
