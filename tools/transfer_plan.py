"""What tools.transfer_study runs, as data: which accuracies it measures, and the commands that each of them takes."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence

from keras_mae.recipes import FINETUNE_RECIPES, FinetuneRecipe, PretrainRecipe, total_steps
from keras_mae.recipes.probing import LinearProbeRecipe
from tools.transfer_work import evaluation_work, finetune_work, pretrain_work, probe_work

PARTS = ("labels", "blocks", "ratios")
TUNED, SCRATCH, PROBED = "fine-tuned", "from scratch", "linear probe"
# Fields of a study that say what is measured and not how: with others, what is finished stays as it is.
CHOICES = ("data", "seeds", "fractions", "blocks_fraction", "trainable_blocks", "mask_ratios", "parts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured, and what all its trainings share.

    Attributes:
        data: folder of the shard set.
        recipe: name, of all kinds of recipes.
        seeds: of all trainings, and of the choice of labelled images; all is measured once for each.
        fractions: shares of the labels, each above 0 and at most 1.
        blocks_fraction: the share for parts `blocks` and `ratios`.
        trainable_blocks: of partial fine-tuning.
        mask_ratio: of the pre-training that parts `labels` and `blocks` start from.
        mask_ratios: of part `ratios`; `mask_ratio` is one of them.
        parts: some of `PARTS`.
        split: to pre-train on; its labels are what `fractions` are of.
        val_split: split to measure accuracy on.
        least_epochs: a fine-tuning shorter than so many passes over its labelled images is made so long.
        scratch_length: training from scratch sees so many times the images that fine-tuning sees.
        pretrain_flags: words for every keras_mae.pretrain.
        finetune_flags: words for every keras_mae.finetune.
        scratch_flags: more words for those from scratch.
        probe_flags: words for every keras_mae.linear_probe.
    """

    data: str
    recipe: str
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    blocks_fraction: float
    trainable_blocks: tuple[float, ...]
    mask_ratio: float
    mask_ratios: tuple[float, ...]
    parts: tuple[str, ...]
    split: str
    val_split: str
    least_epochs: float
    scratch_length: float
    pretrain_flags: tuple[str, ...] = ()
    finetune_flags: tuple[str, ...] = ()
    scratch_flags: tuple[str, ...] = ()
    probe_flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Images of the split to train on, and of the one to measure accuracy on."""

    train: int
    held_out: int


@dataclasses.dataclass(frozen=True)
class Recipes:
    """What a study's flags make of its recipes."""

    pretrain: PretrainRecipe
    finetune: FinetuneRecipe
    scratch: FinetuneRecipe
    probe: LinearProbeRecipe


@dataclasses.dataclass(frozen=True)
class Row:
    """An accuracy to measure.

    Attributes:
        seed: of all trainings.
        protocol: TUNED, SCRATCH or PROBED.
        fraction: of the labels.
        mask_ratio: of the pre-training; None: from scratch.
        trainable_blocks: of partial fine-tuning; None: all is trained.
    """

    seed: int
    protocol: str
    fraction: float
    mask_ratio: float | None = None
    trainable_blocks: float | None = None

    @property
    def name(self) -> str:
        """Of its run folder, below the study's."""
        words = [self.protocol.replace(" ", "_").replace("-", "_"), f"labels{self.fraction:g}"]
        words += [] if self.mask_ratio is None else [f"ratio{self.mask_ratio:g}"]
        words += [] if self.trainable_blocks is None else [f"blocks{self.trainable_blocks:g}"]
        return f"seed{self.seed}/{'-'.join(words)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A command of a study.

    Attributes:
        name: tells it from the others.
        words: of the command, after `python`.
        output: what is there when it is finished.
        work: what it computes, in 1e9 floating-point operations; roughly.
        needs: names of the steps whose outputs it reads.
        row: whose accuracy it measures; None: another's step.
    """

    name: str
    words: tuple[str, ...]
    output: pathlib.Path
    work: float
    needs: tuple[str, ...] = ()
    row: Row | None = None

    @property
    def module(self) -> str:
        """Of the command."""
        return self.words[1]


def rows_of(study: Study) -> list[Row]:
    """What a study measures, seed by seed; what two parts need is there once."""
    rows = [row for seed in study.seeds for part in study.parts for row in _part_rows(study, part, seed)]
    return list(dict.fromkeys(rows))


def _part_rows(study: Study, part: str, seed: int) -> Iterator[Row]:
    if part == "labels":
        for fraction in study.fractions:
            yield Row(seed, TUNED, fraction, study.mask_ratio)
            yield Row(seed, SCRATCH, fraction)
    elif part == "blocks":
        yield Row(seed, TUNED, study.blocks_fraction, study.mask_ratio)
        for blocks in study.trainable_blocks:
            yield Row(seed, TUNED, study.blocks_fraction, study.mask_ratio, blocks)
    else:
        for ratio in study.mask_ratios:
            yield Row(seed, TUNED, study.blocks_fraction, ratio)
            yield Row(seed, PROBED, 1, ratio)


def steps_of(study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path) -> list[Step]:
    """The commands of a study in their order, each behind those that it needs.

    Args:
        study: what is measured.
        recipes: of the study.
        sizes: of its splits.
        folder: for all that it makes.
    """
    steps: dict[str, Step] = {}
    for row in rows_of(study):
        for step in _row_steps(study, recipes, sizes, folder, row):
            steps.setdefault(step.name, step)
    return list(steps.values())


def _row_steps(study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path, row: Row) -> Iterator[Step]:
    needs = []
    if row.mask_ratio is not None:
        yield (pretrain := _pretrain_step(study, recipes, sizes, folder, row))
        needs.append(pretrain.name)
    if row.fraction < 1:
        yield (labels := _labels_step(study, folder, row))
        needs.append(labels.name)
    make = _probe_step if row.protocol == PROBED else _finetune_step
    yield (training := make(study, recipes, sizes, folder, row, tuple(needs)))
    yield _evaluate_step(study, recipes, sizes, folder, row, training.name)


def pretrained_folder(folder: pathlib.Path, row: Row) -> pathlib.Path:
    """The run folder of the pre-training that a row starts from."""
    return folder / f"seed{row.seed}" / f"pretrain-ratio{row.mask_ratio:g}"


def labelled_data(study: Study, folder: pathlib.Path, row: Row) -> tuple[str, str]:
    """Shard set and split of a row's labelled images."""
    if row.fraction == 1:
        return study.data, study.split
    share = f"{row.fraction:g}".replace(".", "p")  # names of splits have no dots
    return str(folder / "labels"), f"{study.split}_{share}_seed{row.seed}"


def num_labels(sizes: Sizes, row: Row) -> int:
    """Labelled images of a row."""
    return round(row.fraction * sizes.train)


def finetune_steps(study: Study, recipe: FinetuneRecipe, samples: int) -> int:
    """Updates of a fine-tuning on so many images."""
    return max(total_steps(recipe, samples), math.ceil(study.least_epochs * samples / recipe.batch_size))


def _labels_step(study: Study, folder: pathlib.Path, row: Row) -> Step:
    data, split = labelled_data(study, folder, row)
    words = ("-m", "tools.label_subset", f"--data={study.data}", f"--split={study.split}", f"--output={data}")
    words += (f"--val_split={study.val_split}", f"--fraction={row.fraction:g}", f"--seed={row.seed}")
    return Step(
        name=f"labels/{split}",
        words=(*words, f"--split_name={split}", "--workers=1"),
        output=pathlib.Path(data, f"{split}-000000.tar"),
        work=0,
    )


def _pretrain_step(study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path, row: Row) -> Step:
    run_dir = pretrained_folder(folder, row)
    words = ("-m", "keras_mae.pretrain", *study.pretrain_flags, *_shared(study, study.recipe, row))
    words += (f"--data={study.data}", f"--split={study.split}", f"--mask_ratio={row.mask_ratio:g}")
    return Step(
        name=str(run_dir.relative_to(folder)),
        words=(*words, f"--run_dir={run_dir}"),
        output=run_dir / "export",
        work=pretrain_work(recipes.pretrain, row.mask_ratio, total_steps(recipes.pretrain, sizes.train)),
    )


def _finetune_step(
    study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path, row: Row, needs: tuple[str, ...]
) -> Step:
    data, split = labelled_data(study, folder, row)
    trained = recipes.scratch if row.protocol == SCRATCH else recipes.finetune
    steps = finetune_steps(study, recipes.finetune, num_labels(sizes, row))
    if row.protocol == SCRATCH:
        # In images: the paper's batches from scratch are four times those of fine-tuning.
        steps = math.ceil(study.scratch_length * (recipes.finetune.batch_size / trained.batch_size) * steps)
        recipe, own = scratch_words(study)
        own += study.scratch_flags
    else:
        recipe, own = study.recipe, (f"--encoder={pretrained_folder(folder, row) / 'export' / 'saved_model'}",)
        own += () if row.trainable_blocks is None else (f"--trainable_blocks={row.trainable_blocks:g}",)
    images = recipes.finetune.images is not None  # which goes with no --steps
    length = f"--images={steps * trained.batch_size}" if images else f"--steps={steps}"
    words = ("-m", "keras_mae.finetune", *study.finetune_flags, *_shared(study, recipe, row), *own)
    words += (f"--data={data}", f"--split={split}", length, f"--run_dir={folder / row.name}")
    work = finetune_work(trained, row.trainable_blocks, steps)
    return Step(name=row.name, words=words, output=folder / row.name / "export", work=work, needs=needs)


def scratch_words(study: Study) -> tuple[str, tuple[str, ...]]:
    """Recipe and further words of a training from scratch: NAME_scratch if there is one, else NAME without decay."""
    if f"{study.recipe}_scratch" in FINETUNE_RECIPES:
        return f"{study.recipe}_scratch", ("--from_scratch",)
    return study.recipe, ("--from_scratch", "--layer_decay=1")


def _probe_step(
    study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path, row: Row, needs: tuple[str, ...]
) -> Step:
    words = ("-m", "keras_mae.linear_probe", "--cache_features", *study.probe_flags, *_shared(study, study.recipe, row))
    words += (f"--data={study.data}", f"--split={study.split}")
    words += (f"--encoder={pretrained_folder(folder, row) / 'export' / 'saved_model'}",)
    return Step(
        name=row.name,
        words=(*words, f"--run_dir={folder / row.name}"),
        output=folder / row.name / "export",
        work=probe_work(recipes.probe, sizes.train, sizes.held_out),
        needs=needs,
    )


def _evaluate_step(study: Study, recipes: Recipes, sizes: Sizes, folder: pathlib.Path, row: Row, training: str) -> Step:
    run_dir = folder / row.name
    words = ("-m", "keras_mae.evaluate", f"--run_dir={run_dir}", f"--data={study.data}", f"--split={study.val_split}")
    return Step(
        name=f"{row.name}/evaluation",
        words=words,
        output=run_dir / "evaluation" / study.val_split / "results.json",
        work=evaluation_work(recipes.finetune, sizes.held_out),
        needs=(training,),
        row=row,
    )


def _shared(study: Study, recipe: str, row: Row) -> Sequence[str]:
    return f"--recipe={recipe}", f"--seed={row.seed}", f"--val_split={study.val_split}"
