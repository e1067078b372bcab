"""The ablations of the paper's Table 1 as data: which commands make a row, and what the paper measured for it.

The accuracies are published, not measured here: ViT-L/16, 800 epochs of ImageNet-1K, top-1 on its 50,000 validation
images, in percent; "linear" is the linear probe. What a row does not name stays as the recipe has it, so a row that is
the paper's default is written out too. The paper has more depths (4: 84.9/71.9, 12: 84.4/73.3).
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from keras_mae.recipes import PretrainRecipe
from pipeline.argument_checks import sides

PCA_SHARE = 1 / 8  # of a patch's values: the paper keeps 96 coefficients of 768


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        name: of its folder.
        text: what the paper calls it.
        finetuned: the paper's accuracy after fine-tuning, percent.
        linear: the paper's accuracy of the linear probe, percent.
        flags: of keras_mae.pretrain.
        decoder_width: times the recipe's decoder_embed_dim; None: the recipe's own.
        fits_pca: whether a PCA of the patches is to be fitted first, for the row's `--target_file`.
        needs_tokenizer: whether the row's `--target_file` is a tokenizer that the user brings.
    """

    name: str
    text: str
    finetuned: float
    linear: float
    flags: tuple[str, ...] = ()
    decoder_width: float | None = None
    fits_pca: bool = False
    needs_tokenizer: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's ablations.

    Attributes:
        text: what it varies.
        rows: in the paper's order.
    """

    text: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What all rows of a table share.

    Attributes:
        table: a key of `TABLES`.
        data: folder of the shard set.
        recipe: name, of all kinds of recipes.
        seed: of all trainings.
        split: to pre-train on, and to train linear probes on.
        labels: split to fine-tune on.
        val_split: split to measure accuracy on.
        pretrain_flags: words for every keras_mae.pretrain.
        finetune_flags: words for every keras_mae.finetune.
        probe_flags: words for every keras_mae.linear_probe; None: no linear probes.
        tokenizer: file for the row that predicts tokens; None: without that row.
    """

    table: str
    data: str
    recipe: str
    seed: int
    split: str
    labels: str
    val_split: str
    pretrain_flags: tuple[str, ...] = ()
    finetune_flags: tuple[str, ...] = ()
    probe_flags: tuple[str, ...] | None = None
    tokenizer: str | None = None


def row_flags(row: Row, recipe: PretrainRecipe) -> list[str]:
    """What a row adds to the command line of keras_mae.pretrain, but for a `--target_file`."""
    if row.decoder_width is None:
        return list(row.flags)
    return [*row.flags, f"--decoder_embed_dim={row.decoder_width * recipe.decoder_embed_dim:g}"]


def row_text(row: Row, recipe: PretrainRecipe) -> str:
    """What a row is called here: the paper's words, and where the recipe makes it smaller, how small."""
    if row.decoder_width is not None:
        return f"{row.decoder_width * recipe.decoder_embed_dim:g} (paper: {row.text})"
    if row.fits_pca:
        return f"{row.text}, {pca_components(recipe)} of {patch_values(recipe)} coefficients"
    return row.text


def patch_values(recipe: PretrainRecipe) -> int:
    """Numbers in a patch."""
    return recipe.patch_size**2 * recipe.channels


def pca_components(recipe: PretrainRecipe) -> int:
    """Coefficients that the row `pca` predicts: the paper's share of a patch's numbers."""
    return max(1, round(PCA_SHARE * patch_values(recipe)))


def own_flags(study: Study, row: Row, recipe: PretrainRecipe, folder: pathlib.Path) -> list[str]:
    """What a row adds to the command line of keras_mae.pretrain."""
    target = folder / "pca.npz" if row.fits_pca else study.tokenizer if row.needs_tokenizer else None
    return [*row_flags(row, recipe), *([] if target is None else [f"--target_file={target}"])]


def row_commands(study: Study, row: Row, recipe: PretrainRecipe, folder: pathlib.Path) -> list[list[str]]:
    """The commands of a row in their order, as words after `python`."""
    pretrained = folder / "pretrain"
    shared = (f"--recipe={study.recipe}", f"--data={study.data}", f"--seed={study.seed}")
    shared += (f"--val_split={study.val_split}",)
    commands = []
    if row.fits_pca:
        commands.append([*fit_words(study, recipe), f"--output={folder / 'pca.npz'}"])
    commands.append(
        ["-m", "keras_mae.pretrain", *study.pretrain_flags, *shared, f"--split={study.split}"]
        + [*own_flags(study, row, recipe, folder), f"--run_dir={pretrained}"]
    )
    encoder = f"--encoder={pretrained / 'export' / 'saved_model'}"
    commands.append(
        ["-m", "keras_mae.finetune", *study.finetune_flags, *shared, f"--split={study.labels}"]
        + [encoder, f"--run_dir={folder / 'finetune'}"]
    )
    if study.probe_flags is not None:
        # With all labels, as in the paper: of few, the head tells little of what the features hold.
        commands.append(
            ["-m", "keras_mae.linear_probe", *study.probe_flags, *shared, f"--split={study.split}"]
            + [encoder, f"--run_dir={folder / 'probe'}"]
        )
    return commands


def fit_words(study: Study, recipe: PretrainRecipe) -> list[str]:
    """The command that fits the PCA of the patches as the recipe's encoder sees them, but for its output."""
    words = ["-m", "tools.fit_pca", f"--data={study.data}", f"--split={study.split}"]
    words += [
        f"--num_components={pca_components(recipe)}",
        f"--image_size={','.join(map(str, sides(recipe.image_size)))}",
    ]
    words += [f"--{name}={getattr(recipe, name)}" for name in ("patch_size", "channels")]
    words += [f"--{name}={','.join(map(str, getattr(recipe, name)))}" for name in ("pixel_mean", "pixel_std")]
    return words if recipe.resize_size is None else [*words, f"--resize_size={recipe.resize_size}"]


TABLES: Mapping[str, Table] = {
    "1a": Table(
        "decoder depth",
        (
            Row(name="depth_1", text="1 block", finetuned=84.8, linear=65.5, flags=("--decoder_depth=1",)),
            Row(name="depth_2", text="2 blocks", finetuned=84.9, linear=70.0, flags=("--decoder_depth=2",)),
            Row(name="depth_8", text="8 blocks", finetuned=84.9, linear=73.5, flags=("--decoder_depth=8",)),
        ),
    ),
    "1b": Table(
        "decoder width",
        (
            Row(name="width_quarter", text="128", finetuned=84.9, linear=69.1, decoder_width=0.25),
            Row(name="width_half", text="256", finetuned=84.8, linear=71.3, decoder_width=0.5),
            Row(name="width_recipe", text="512", finetuned=84.9, linear=73.5, decoder_width=1),
            Row(name="width_three_halves", text="768", finetuned=84.4, linear=73.1, decoder_width=1.5),
            Row(name="width_double", text="1024", finetuned=84.3, linear=73.1, decoder_width=2),
        ),
    ),
    "1c": Table(
        "mask token",
        (
            Row(
                name="encoder_with",
                text="encoder with mask tokens",
                finetuned=84.2,
                linear=59.6,
                flags=("--encoder_mask_tokens=true",),
            ),
            Row(
                name="encoder_without",
                text="encoder without mask tokens",
                finetuned=84.9,
                linear=73.5,
                flags=("--encoder_mask_tokens=false",),
            ),
        ),
    ),
    "1d": Table(
        "reconstruction target",
        (
            Row(
                name="pixels",
                text="pixels",
                finetuned=84.9,
                linear=73.5,
                flags=("--target=pixels", "--norm_pix_loss=false"),
            ),
            Row(
                name="normalized_pixels",
                text="normalised pixels",
                finetuned=85.4,
                linear=73.9,
                flags=("--target=pixels", "--norm_pix_loss=true"),
            ),
            Row(name="pca", text="PCA", finetuned=84.6, linear=72.3, flags=("--target=pca",), fits_pca=True),
            Row(
                name="tokens",
                text="dVAE tokens",
                finetuned=85.3,
                linear=71.6,
                flags=("--target=tokens",),
                needs_tokenizer=True,
            ),
        ),
    ),
    "1e": Table(
        "augmentation",
        (
            Row(name="none", text="none", finetuned=84.0, linear=65.7, flags=("--augmentation=none",)),
            Row(
                name="fixed_crop", text="fixed crop", finetuned=84.7, linear=73.1, flags=("--augmentation=fixed_crop",)
            ),
            Row(
                name="random_crop",
                text="random crop",
                finetuned=84.9,
                linear=73.5,
                flags=("--augmentation=random_crop",),
            ),
            Row(
                name="color_jitter",
                text="random crop, colour jitter",
                finetuned=84.3,
                linear=71.9,
                flags=("--augmentation=color_jitter",),
            ),
        ),
    ),
    "1f": Table(
        "mask sampling",
        (
            Row(
                name="random_75",
                text="random 75%",
                finetuned=84.9,
                linear=73.5,
                flags=("--mask_kind=random", "--mask_ratio=.75"),
            ),
            Row(
                name="block_50",
                text="block 50%",
                finetuned=83.9,
                linear=72.3,
                flags=("--mask_kind=block", "--mask_ratio=.5"),
            ),
            Row(
                name="block_75",
                text="block 75%",
                finetuned=82.8,
                linear=63.9,
                flags=("--mask_kind=block", "--mask_ratio=.75"),
            ),
            Row(
                name="grid_75",
                text="grid 75%",
                finetuned=84.0,
                linear=66.0,
                flags=("--mask_kind=grid", "--mask_ratio=.75"),
            ),
        ),
    ),
}
