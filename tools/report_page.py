"""The table of several runs as Markdown and as a self-contained HTML page, for tools.report."""

import base64
import html
import math
import statistics
from collections.abc import Sequence

from tools.report_runs import Run, best_of, differing_fields, figures_of

Table = tuple[list[str], list[list[str]]]

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: left; }} img {{ max-width: 100%; }}
</style>
<h1>{title}</h1>
<div>{table}</div>
<p>loss: of one training batch. last and best: of the rows that were logged; (step) says which.</p>
<h2>Curves</h2><img alt="curves of the runs" src="data:image/png;base64,{curves}">
{differences}</html>
"""


def runs_table(runs: Sequence[Run]) -> Table:
    """Head and rows: state, length, speed, and the last and best value of each loss and evaluation."""
    figures = ["loss", *(name for name in figures_of(runs) if name.startswith("val_"))]
    head = ["run", "state", "steps", "epochs", "time", "images/s", "data wait"]
    for name in figures:
        head += [f"{name}, last", f"{name}, best (step)"]
    return head, [[*_progress_cells(run), *(cell for name in figures for cell in _values(run, name))] for run in runs]


def differences_table(runs: Sequence[Run]) -> Table:
    """Head and rows: the fields in which the runs differ."""
    fields = differing_fields(runs)
    return ["field", *(run.name for run in runs)], [
        [name, *("-" if value is None else str(value) for value in values)] for name, values in fields.items()
    ]


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, rows = table
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(runs: Sequence[Run], curves: bytes) -> str:
    """The HTML page, pictures included.

    Args:
        runs: to show.
        curves: PNG.
    """
    differences = ""
    if len(runs) > 1 and differing_fields(runs):
        differences = f"<h2>What differs</h2><div>{_html(differences_table(runs))}</div>\n"
    title = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return PAGE.format(
        title=title,
        table=_html(runs_table(runs)),
        curves=base64.b64encode(curves).decode(),
        differences=differences,
    )


def _progress_cells(run: Run) -> list[str]:
    speeds, waits, seconds = (run.curve(name)[1] for name in ("images_per_second", "data_wait", "seconds"))
    return [
        run.name,
        "finished" if run.is_finished else "unfinished",
        f"{run.steps} of {run.total_steps}",
        f"{run.epochs(run.steps):.1f}",
        _duration(seconds[-1]) if seconds else "-",
        f"{statistics.median(speeds):.1f}" if speeds else "-",
        f"{statistics.mean(waits):.0%}" if waits else "-",
    ]


def _values(run: Run, name: str) -> list[str]:
    _, values = run.curve(name)
    if not values:
        return ["-", "-"]
    best, step = best_of(run, name)
    return [_number(values[-1]), f"{_number(best)} ({step})"]


def _number(value: float) -> str:
    """Four digits, in plain notation where that is short."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"


def _duration(seconds: float) -> str:
    minutes = math.floor(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60}:{minutes % 60:02d} h"


def _html(table: Table) -> str:
    head, rows = table
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
