"""Our results beside the published ones, for tools.report: one table and plots, as Markdown and as an HTML page.

What was measured here and what others published stand in columns of their own, and never mix. Results are beside a
published row if data, protocol, method, model and figure are the same; that the pre-training was the same is not known
from them. A split counts as a data set if it has its number of classes and of validation images.
"""

import html
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from keras_mae.evaluation.results_file import read_results
from keras_mae.recipes import PRETRAIN_RECIPES
from keras_mae.recipes.published import IMAGENET, MODELS, PUBLISHED, PublishedResult, finetune_command, probe_command
from keras_mae.recipes.sizes import SIZES
from pipeline.atomic import open_atomically
from tools.ablation_tables import TABLES, Row, row_flags
from tools.report_page import Table, markdown
from tools.report_transfer import measured_runs, pictures_html, transfer_notes, transfer_pictures
from tools.transfer_panels import PANELS

# Classes and validation images
DATA_SETS = {
    (1000, 50000): IMAGENET,
    (5089, 95986): "iNaturalist 2017",
    (8142, 24426): "iNaturalist 2018",
    (1010, 3030): "iNaturalist 2019",
    (205, 20500): "Places205",
    (365, 36500): "Places365",
}
SUITE_TITLES = {
    "imagenet-a": "ImageNet-A",
    "imagenet-r": "ImageNet-R",
    "imagenet-sketch": "ImageNet-Sketch",
    "imagenet-v2": "ImageNet-V2",
}
PROTOCOLS = {"finetune": "fine-tuned", "linear_probe": "linear probe"}
HEAD = ["data", "protocol", "method", "model", "figure", "measured here", "published", "by", "command", "note"]
MEASURED, PUBLISHED_COLUMN = HEAD.index("measured here"), HEAD.index("published")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Results</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; color: #222; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top; }}
img {{ max-width: 100%; vertical-align: top; }}
.measured {{ background: #e3f1e3; font-weight: 600; }} .published {{ background: #eee; }} code {{ font-size: .8rem; }}
</style>
<h1>Results</h1>
{pictures}<p>{legend}</p>
<div>{table}</div>
</html>
"""
LEGEND = (
    "measured here: found by this project's commands, with the standard error of an accuracy on so many images. "
    "published: found by others, never by this project. top-1, top-5 and mCE in percent; of mCE and loss, less is "
    "better. IMAGENET, ... stand for shard sets, RUN for a run folder, ENCODER for the export of pre-training."
)


class Measured(NamedTuple):
    """A figure of ours.

    Attributes:
        data, protocol, method, model, figure: as in `PublishedResult`.
        text: the value, with its standard error.
        file: where it is from.
    """

    data: str
    protocol: str
    method: str
    model: str
    figure: str
    text: str
    file: str

    def is_beside(self, row: PublishedResult) -> bool:
        """Whether a published row is about the same."""
        return self[:5] == (row.data, row.protocol, row.method, row.model, row.figure)


def write_results_report(paths: Sequence[str | os.PathLike], output: str | os.PathLike) -> str:
    """Writes results.md, results.html and a PNG of each plot into a folder; returns the Markdown.

    Args:
        paths: files that keras_mae.evaluate wrote.
        output: folder, which is made if there is none.

    Raises:
        ResultsError: a file holds no results.
    """
    measured = [figure for path in paths for figure in measured_figures(path)]
    table = results_table(measured)
    runs = measured_runs(paths)
    pictures, notes = transfer_pictures(runs), transfer_notes(runs)
    text = "\n\n".join(["# Results", *(f"![{PANELS[name][1]}]({name}.png)" for name in pictures), *notes, LEGEND])
    text += f"\n\n{markdown(table)}"
    page = results_page(table, pictures_html(pictures, notes))
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    contents = {f"{name}.png": picture for name, picture in pictures.items()}
    contents |= {"results.md": text.encode(), "results.html": page.encode()}
    for name, content in contents.items():
        with open_atomically(output / name) as file:
            file.write(content)
    return text


def measured_figures(path: str | os.PathLike) -> list[Measured]:
    """The figures that a file of results holds.

    Raises:
        ResultsError: the file holds no results.
    """
    results = read_results(path)
    protocol, method = _protocol(results["run"])
    if "knn" in results:
        protocol, figures = "kNN", _knn_figures(results)
    else:
        figures = _suite_figures(results) if "suite" in results else _split_figures(results)
    about = (protocol, method, _model(results["structure"]))
    return [Measured(data, *about, figure, text, os.fspath(path)) for data, figure, text in figures]


def results_table(measured: Sequence[Measured]) -> Table:
    """Head and rows: first what has no published counterpart, then every published row with ours beside it."""
    published = [*PUBLISHED, *_ablations()]
    beside = [[own for own in measured if own.is_beside(row)] for row in published]
    known = {own for found in beside for own in found}
    rows = [[*own[:5], f"{own.text} ({own.file})", "-", "-", "-", ""] for own in measured if own not in known]
    for row, found in zip(published, beside, strict=True):
        ours = "; ".join(f"{own.text} ({own.file})" for own in found)
        command = row.command or "none yet"
        note = "; ".join(filter(None, (row.note, row.missing and f"still missing here: {row.missing}")))
        about = [row.data, row.protocol, row.method, row.model, row.figure]
        rows.append([*about, ours or "-", f"{row.value:g}", row.source, command, note])
    return HEAD, rows


def results_page(table: Table, pictures: str = "") -> str:
    """The table as an HTML page that needs no other file.

    Args:
        table: of `results_table`.
        pictures: HTML above it.
    """
    head, rows = table
    classes = {MEASURED: ' class="measured"', PUBLISHED_COLUMN: ' class="published"'}
    lines = ["".join(f"<th{classes.get(i, '')}>{html.escape(cell)}</th>" for i, cell in enumerate(head))]
    for row in rows:
        cells = [html.escape(cell) for cell in row]
        cells[HEAD.index("command")] = f"<code>{cells[HEAD.index('command')]}</code>"
        lines.append("".join(f"<td{classes.get(i, '')}>{cell}</td>" for i, cell in enumerate(cells)))
    table_text = "<table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"
    return PAGE.format(pictures=pictures and f"{pictures}\n", legend=html.escape(LEGEND), table=table_text)


def _data(results: dict) -> str:
    images, classes = results["samples"], results["structure"]["num_classes"]
    return DATA_SETS.get((classes, images), f"{results['data']}, {results['split']}: {images} images")


def _knn_figures(results: dict) -> Iterator[tuple[str, str, str]]:
    for k, accuracy in results["knn"].items():
        yield _data(results), f"top-1, k={k}", _percent(accuracy, results["samples"])


def _split_figures(results: dict) -> Iterator[tuple[str, str, str]]:
    images, data = results["samples"], _data(results)
    yield data, "top-1", _percent(results["accuracy"], images)
    yield data, "top-5", _percent(results["top5_accuracy"], images)
    yield data, "loss", f"{results['loss']:.3f}"


def _suite_figures(results: dict) -> Iterator[tuple[str, str, str]]:
    for name, title in SUITE_TITLES.items():
        if name in results["sets"]:
            figures = results["sets"][name]
            yield title, "top-1", _percent(figures["accuracy"], figures["samples"])
        else:
            yield title, "top-1", "not measured"
    yield "ImageNet-C", "mCE", "not measured" if results["mce"] is None else f"{100 * results['mce']:.1f}"


def _percent(share: float, images: int) -> str:
    return f"{100 * share:.2f} ± {100 * math.sqrt(share * (1 - share) / images):.2f}"


def _protocol(run: dict | None) -> tuple[str, str]:
    """Protocol and method, as far as the run behind the results tells them."""
    if run is None:
        return "unknown: no run", "unknown"
    if run["recipe"].get("from_scratch"):
        return "from scratch", "scratch"
    return PROTOCOLS.get(run["command"], run["command"]), "MAE"


def _model(structure: dict) -> str:
    """As the published rows call it, where it is one of theirs."""
    height, width = structure["image_size"]
    sizes = tuple(structure[name] for name in ("embed_dim", "depth", "num_heads", "patch_size"))
    for recipe, size in SIZES.items():
        known = (size["embed_dim"], size["depth"], size["num_heads"], size.get("patch_size", 16))
        if recipe in MODELS and sizes == known and (height, width) == (224, 224):
            return MODELS[recipe]
        if f"{recipe}_448" in MODELS and sizes == known and (height, width) == (448, 448):
            return MODELS[f"{recipe}_448"]
    return f"ViT {'/'.join(map(str, sizes[:3]))} patch {sizes[3]}, {height}x{width} px"


def _ablations() -> Iterator[PublishedResult]:
    """The rows of the paper's Table 1."""
    for name, table in TABLES.items():
        for row in table.rows:
            shared = {
                "data": IMAGENET,
                "method": f"MAE, {table.text}: {row.text}",
                "model": MODELS["vit_large"],
                "figure": "top-1",
                "source": f"paper, Table {name}",
                "note": f"ENCODER: {_ablation_command(row)}",
            }
            tuned, probed = finetune_command("vit_large"), probe_command("vit_large_paper")
            yield PublishedResult(**shared, protocol="fine-tuned", value=row.finetuned, command=tuned)
            yield PublishedResult(**shared, protocol="linear probe", value=row.linear, command=probed)


def _ablation_command(row: Row) -> str:
    words = row_flags(row, PRETRAIN_RECIPES["vit_large"])
    if not any("norm_pix_loss" in word for word in words):
        words.insert(0, "--norm_pix_loss=false")  # the table's default, but not the recipe's
    if row.fits_pca:
        words.append("--target_file=PCA")  # of tools.fit_pca
    if row.needs_tokenizer:
        words.append("--target_file=TOKENIZER")  # of tools.convert_tokenizer
    return " ".join(["keras_mae.pretrain --recipe=vit_large", *words])
