"""The demo's page: result, curves and reconstructions in one self-contained HTML file."""

import base64
import html
import io
import pathlib

from keras_mae.training.metrics_log import read_rows

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Masked autoencoder: the demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .4rem 1rem; border-bottom: 1px solid #ccc; text-align: left; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }} img {{ max-width: 100%; }}
code {{ background: #f3f3f3; padding: .1rem .3rem; }}
</style>
<h1>Masked autoencoder: the demo</h1>
<p>A small ViT was pre-trained on {unlabelled_images} images without labels, by rebuilding the patches it was not shown.
Then the same ViT was trained as a classifier with only {labels} labelled images: once from the pre-trained encoder,
once from scratch, with equal steps and augmentation. The learning rate of scratch is the best of three on digits.</p>
<table><tr><th>Start</th><th>Accuracy on {held_out_images} held-out images</th></tr>
<tr><td>pre-trained encoder, fine-tuned</td><td class="number"><b>{finetune:.1f}%</b></td></tr>
<tr><td>from scratch</td><td class="number">{scratch:.1f}%</td></tr></table>
<p>Seed {seed}; all steps together took {seconds:.0f} s.</p>
<h2>Reconstructions of held-out images</h2><img alt="original, masked and reconstructed images" src="{figure}">
<h2>Curves</h2><img alt="training curves" src="{curves}">
<h2>The model</h2><p>The fine-tuned model is a SavedModel in <code>{saved_model}</code>; a fresh process loaded it and
its outputs were equal to the Keras model's.</p></html>
"""


def write_report(output: pathlib.Path, results: dict) -> None:
    """Writes OUTPUT/report.html.

    Args:
        output: the demo's folder, with the runs `pretrain`, `finetune` and `scratch`.
        results: as `tools.demo` writes them into report.json.
    """
    page = PAGE.format(
        **{name: html.escape(v) if isinstance(v, str) else v for name, v in results.items()},
        finetune=100 * results["finetune_accuracy"],
        scratch=100 * results["scratch_accuracy"],
        figure=_data_url(pathlib.Path(results["reconstructions"]).read_bytes()),
        curves=_data_url(draw_curves(output)),
    )
    (output / "report.html").write_text(page)


def draw_curves(output: pathlib.Path) -> bytes:
    """PNG of the losses of pre-training and of both classifiers' held-out accuracy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, accuracies) = pyplot.subplots(1, 2, figsize=(11, 4))
    rows = read_rows(output / "pretrain" / "metrics.jsonl")
    losses.plot(*_series(rows, "loss"), label="training batch", linewidth=0.8)
    losses.plot(*_series(rows, "val_loss"), "o-", label="held-out images")
    losses.set(title="Pre-training", xlabel="step", ylabel="error of removed patches")
    losses.legend()
    for run, label in (("finetune", "pre-trained"), ("scratch", "from scratch")):
        steps, values = _series(read_rows(output / run / "metrics.jsonl"), "val_accuracy")
        accuracies.plot(steps, [100 * v for v in values], "o-", label=label)
    accuracies.set(title="Few labels", xlabel="step", ylabel="held-out accuracy, %", ylim=(0, 100))
    accuracies.legend()
    figure.tight_layout()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    pyplot.close(figure)
    return png.getvalue()


def _series(rows: list[dict], name: str) -> tuple[list, list]:
    chosen = [row for row in rows if name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
