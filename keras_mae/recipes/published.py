"""Published classification results, each with the command of this project that would reproduce it given the data.

Nothing here was measured by this project. `source` says who did: the paper (arXiv 2111.06377) with its table, the
official code's repository, or others. In the commands

    IMAGENET, INAT2017, PLACES365, ...  stand for shard sets, as tools.make_shards writes them
    ENCODER  stands for the export folder of pre-training: keras_mae.pretrain --recipe=vit_base_1600 (or vit_large_1600,
             vit_huge_1600), or for the official weights after tools.convert_weights
    RUN      stands for a run folder

The paper's Table 1 is in `tools.ablation_tables`; its rows that are not there are here.
"""

import dataclasses
from collections.abc import Iterator

MODELS = {"vit_base": "ViT-B/16", "vit_large": "ViT-L/16", "vit_huge": "ViT-H/14", "vit_huge_448": "ViT-H/14 448 px"}
IMAGENET = "ImageNet-1K"
SOURCE = "paper, {}"
OTHERS = "measured by others"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedResult:
    """One figure.

    Attributes:
        data: what it was measured on: validation images of this data set.
        protocol: how the classifier was made: "fine-tuned", "from scratch", "linear probe", ...
        method: of pre-training.
        model: the encoder.
        figure: what was measured: "top-1", "top-5" and "mCE" are in percent.
        value: of the figure.
        source: who published it, and where.
        command: that reproduces it; empty: there is none.
        note: what must be known beside it.
        missing: what this project does not have yet for it; empty: nothing.
    """

    data: str
    protocol: str
    method: str
    model: str
    figure: str
    value: float
    source: str
    command: str
    note: str = ""
    missing: str = ""


def finetune_command(recipe: str, data: str = "IMAGENET") -> str:
    """Fine-tunes an encoder with a recipe."""
    return f"python -m keras_mae.finetune --recipe={recipe} --encoder=ENCODER --data={data} --run_dir=RUN"


def probe_command(recipe: str) -> str:
    """Trains a linear probe with a recipe."""
    return f"python -m keras_mae.linear_probe --recipe={recipe} --encoder=ENCODER --data=IMAGENET --run_dir=RUN"


def _rows(values: tuple[float, ...], **shared) -> Iterator[PublishedResult]:
    """A row for each of the sizes B, L, H, H448, or the first so many; {recipe} in command and note is filled in."""
    for (recipe, model), value in zip(MODELS.items(), values, strict=False):
        texts = {name: shared.get(name, "").replace("{recipe}", recipe) for name in ("command", "note")}
        yield PublishedResult(**{**shared, **texts, "model": model, "value": value})


def _fine_tuned() -> Iterator[PublishedResult]:
    table = {"data": IMAGENET, "figure": "top-1", "source": SOURCE.format("Table 3")}
    tuned = {**table, "protocol": "fine-tuned", "command": finetune_command("{recipe}")}
    yield from _rows(
        (83.6, 85.9, 86.9, 87.8),
        **tuned,
        method="MAE",
        note="encoder of 1600 epochs",
    )
    scratch = "python -m keras_mae.finetune --recipe={recipe}_scratch --data=IMAGENET --run_dir=RUN"
    yield from _rows((82.3, 82.6, 83.1), **{**table, "protocol": "from scratch", "command": scratch}, method="scratch")
    theirs = "their encoder, converted by tools.convert_weights; with our recipe, not theirs"
    yield from _rows((82.8,), **tuned, method="DINO", note=theirs, missing="DINO's own pre-training")
    yield from _rows((83.2, 84.1), **tuned, method="MoCo v3", note=theirs, missing="a converter, and its pre-training")
    yield from _rows(
        (83.2, 85.2), **{**tuned, "command": ""}, method="BEiT", missing="its model, with relative positions"
    )
    yield PublishedResult(
        **{**tuned, "source": OTHERS, "command": finetune_command("vit_huge_448")},
        method="MAE",
        model=MODELS["vit_huge_448"],
        value=87.3,
        note="the recipe's own values, from the official encoder",
    )


def _checkpoints() -> Iterator[PublishedResult]:
    measured = {"vit_base": (83.664, 96.530, 0.731), "vit_large": (85.952, 97.570, 0.646)}
    measured["vit_huge"] = (86.928, 98.088, 0.584)
    for recipe, values in measured.items():
        file = f"mae_finetuned_{recipe}.pth"
        command = f"python -m tools.convert_weights --input={file} --output=CONVERTED"
        command += " && python -m keras_mae.evaluate --model=CONVERTED --data=IMAGENET"
        for figure, value in zip(("top-1", "top-5", "loss"), values, strict=True):
            note = "four seeds: 83.63, 83.66, 83.52, 83.46" if (recipe, figure) == ("vit_base", "top-1") else ""
            yield PublishedResult(
                data=IMAGENET,
                protocol="fine-tuned",
                method="MAE",
                model=MODELS[recipe],
                figure=figure,
                value=value,
                source="official checkpoint",
                command=command,
                note=note,
            )


def _probed() -> Iterator[PublishedResult]:
    shared = {"data": IMAGENET, "protocol": "linear probe", "method": "MAE", "figure": "top-1"}
    commands = {"vit_base": "vit_base", "vit_large": "vit_large_paper", "vit_huge": "vit_huge_paper"}
    for (recipe, paper), printed, official in zip(
        commands.items(), (68.0, 75.8, 76.6), (67.8, 76.0, 77.2), strict=True
    ):
        for name, value, source in ((paper, printed, SOURCE.format("Table 12")), (recipe, official, "official code")):
            yield PublishedResult(
                **shared,
                model=MODELS[recipe],
                value=value,
                source=source,
                command=probe_command(name),
                note="encoder of 1600 epochs",
            )


def _partly_tuned() -> Iterator[PublishedResult]:
    for blocks, value in (("0", 73.5), ("0.5", 79.1), ("1", 81.0)):
        yield PublishedResult(
            data=IMAGENET,
            protocol=f"partial fine-tuning of {blocks} block(s)",
            method="MAE",
            model=MODELS["vit_large"],
            figure="top-1",
            value=value,
            source=SOURCE.format("Section 4.3"),
            command=probe_command("vit_large_paper")
            if blocks == "0"
            else f"{finetune_command('vit_large')} --trainable_blocks={blocks}",
            note="encoder of 800 epochs, on plain pixels; the best of 50, 100 and 200 epochs of fine-tuning",
        )


def _transferred() -> Iterator[PublishedResult]:
    values = {
        "iNaturalist 2017": ("INAT2017", (70.5, 75.7, 79.3, 83.4)),
        "iNaturalist 2018": ("INAT2018", (75.4, 80.1, 83.0, 86.8)),
        "iNaturalist 2019": ("INAT2019", (80.5, 83.4, 85.7, 88.3)),
        "Places205": ("PLACES205", (63.9, 65.8, 65.9, 66.8)),
        "Places365": ("PLACES365", (57.9, 59.4, 59.8, 60.3)),
    }
    for data, (name, row) in values.items():
        yield from _rows(
            row,
            data=data,
            protocol="fine-tuned",
            method="MAE",
            figure="top-1",
            source=SOURCE.format("Table 6"),
            command=finetune_command("{recipe}", name),
            note="the paper adjusts rate and epochs for each data set, and does not print them",
        )


def _robust() -> Iterator[PublishedResult]:
    # The second rows are the paper's "our supervised training baselines", without 448 px.
    values = {
        "imagenet-c": ((51.7, 41.8, 33.8, 36.8), (45.8, 42.3, 41.3)),
        "imagenet-a": ((35.9, 57.1, 68.2, 76.7), (27.2, 29.6, 33.1)),
        "imagenet-r": ((48.3, 59.9, 64.4, 66.5), (49.4, 50.9, 50.3)),
        "imagenet-sketch": ((34.5, 45.3, 49.6, 50.9), (35.6, 37.5, 38.0)),
    }
    titles = {"imagenet-c": "ImageNet-C", "imagenet-a": "ImageNet-A", "imagenet-r": "ImageNet-R"}
    command = "python -m keras_mae.evaluate --run_dir=RUN --suite=robustness --suite_data="
    for name, (tuned, scratch) in values.items():
        shared = {
            "data": titles.get(name, "ImageNet-Sketch"),
            "figure": "mCE" if name == "imagenet-c" else "top-1",
            "source": SOURCE.format("Table 13"),
            "command": f"{command}{name}={name.upper().replace('-', '_')}",
        }
        note = "RUN: keras_mae.finetune --recipe={recipe} on ImageNet-1K"
        yield from _rows(tuned, **shared, protocol="fine-tuned", method="MAE", note=note)
        note = "RUN: keras_mae.finetune --recipe={recipe}_scratch on ImageNet-1K"
        yield from _rows(scratch, **shared, protocol="from scratch", method="scratch", note=note)


def _ablated() -> Iterator[PublishedResult]:
    table = {"data": IMAGENET, "figure": "top-1", "model": MODELS["vit_large"]}
    for depth, tuned, linear in ((4, 84.9, 71.9), (12, 84.4, 73.3)):
        shared = {**table, "method": f"MAE, decoder of {depth} blocks", "source": SOURCE.format("Table 1a")}
        note = f"ENCODER: keras_mae.pretrain --recipe=vit_large --nonorm_pix_loss --decoder_depth={depth}"
        yield PublishedResult(
            **shared, protocol="fine-tuned", value=tuned, command=finetune_command("vit_large"), note=note
        )
        yield PublishedResult(
            **shared, protocol="linear probe", value=linear, command=probe_command("vit_large_paper"), note=note
        )
    shared = {**table, "protocol": "from scratch", "source": SOURCE.format("Section 4")}
    yield PublishedResult(
        **shared, method="scratch, as in the ViT paper", value=76.5, command="", missing="the ViT paper's own recipe"
    )
    yield PublishedResult(
        **shared,
        method="scratch, without averages",
        value=82.5,
        command="python -m keras_mae.finetune --recipe=vit_large_scratch --ema_decay=0 --data=IMAGENET --run_dir=RUN",
    )


def _short() -> Iterator[PublishedResult]:
    commands = {
        ("kNN", 11.2): "python -m keras_mae.knn --encoder=ENCODER --data=IMAGENET",
        ("linear probe", 46.0): probe_command("vit_base"),
        ("fine-tuned", 81.3): finetune_command("vit_base"),
    }
    for (protocol, value), command in commands.items():
        yield PublishedResult(
            data=IMAGENET,
            protocol=protocol,
            method="MAE, 100 epochs",
            model=MODELS["vit_base"],
            figure="top-1",
            value=value,
            source=OTHERS,
            command=command,
            note="ENCODER: keras_mae.pretrain --recipe=vit_base --epochs=100",
        )


PUBLISHED = (
    *_fine_tuned(),
    *_checkpoints(),
    *_probed(),
    *_partly_tuned(),
    *_transferred(),
    *_robust(),
    *_ablated(),
    *_short(),
)
