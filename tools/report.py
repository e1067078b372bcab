"""What runs and results look like beside each other, and beside the published numbers.

  python -m tools.report runs/base
  python -m tools.report runs/* --output=report --x=epoch
  python -m tools.report runs/tuned/evaluation/val/results.json

Of run folders: curves and figures, as OUTPUT/report.html, OUTPUT/curves.png and OUTPUT/table.md. Runs that have not
reached their end, or are still running, are marked as unfinished. Of results.json files, as `keras_mae.evaluate` writes
them: one table with the published numbers and the commands that reproduce them, as OUTPUT/results.html and
OUTPUT/results.md, and plots of accuracy against labels, trainable blocks and masking ratio, where results differ in
these (labels.png, blocks.png, ratios.png). Prints the table; what it reports on is only read.
"""

import os
import pathlib

from absl import flags

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.evaluation.results_file import ResultsError, is_results
from keras_mae.training.run_dir import RunDirError
from pipeline.atomic import open_atomically
from tools.report_curves import draw_curves
from tools.report_page import markdown, page, runs_table
from tools.report_results import write_results_report
from tools.report_runs import is_run, read_runs

FLAGS = flags.FLAGS


def check_paths(paths: list[str], output: str) -> None:
    """Raises CommandError if there is nothing to report on, a path is neither kind, or the output is a file."""
    if not paths:
        raise CommandError("name run folders, or results.json files: python -m tools.report RUN...")
    results = [path for path in paths if is_results(path)]
    if results and len(results) < len(paths):
        raise CommandError(f"{results[0]} holds results, others are run folders; a report is about one kind of them")
    for path in () if results else paths:
        if not is_run(path):
            reason = "it has no recipe.json" if os.path.isdir(path) else "there is no such folder"
            raise CommandError(f"{path} is neither a run folder of keras_mae nor a results.json: {reason}")
    if os.path.exists(output) and not os.path.isdir(output):
        raise CommandError(f"--output={output} is a file; expected a folder, or a name for one")


def write_runs_report(paths: list[str], output: pathlib.Path, against: str) -> str:
    """Writes page, picture and table of run folders; returns the table as Markdown."""
    runs = read_runs(paths)
    curves, table = draw_curves(runs, against), markdown(runs_table(runs))
    output.mkdir(parents=True, exist_ok=True)
    contents = {"curves.png": curves, "table.md": table.encode(), "report.html": page(runs, curves).encode()}
    for name, content in contents.items():
        with open_atomically(output / name) as file:
            file.write(content)
    return table


def main(argv: list[str]) -> int:
    paths = argv[1:]
    check_paths(paths, FLAGS.output)
    output = pathlib.Path(FLAGS.output)
    with commandline.user_mistakes(RunDirError, ResultsError):
        if is_results(paths[0]):
            print(f"{write_results_report(paths, output)}\n{output / 'results.html'}: the same table")
        else:
            print(f"{write_runs_report(paths, output, FLAGS.x)}\n{output / 'report.html'}: the table, with curves")
    return 0


def define_flags() -> None:
    """Defines the command's flags; not at import, because other commands have flags of the same names."""
    flags.DEFINE_string("output", "report", "Folder for the page, the table and the picture.")
    flags.DEFINE_enum("x", "step", ("step", "epoch"), "What curves are drawn against.")


def entry_point() -> None:
    commandline.run(main, define_flags, takes_words=True)


if __name__ == "__main__":
    entry_point()
