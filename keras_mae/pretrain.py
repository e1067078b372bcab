"""Pre-trains a masked autoencoder on a shard set, without labels.

python -m keras_mae.pretrain --recipe=vit_base --data=SHARDS --run_dir=runs/base

Every field of the recipe is a flag. The same command again goes on where the run stopped. Ends with
RUN_DIR/export/encoder.keras and RUN_DIR/export/saved_model. A `--target_file` is copied to RUN_DIR/target.
"""

import functools
import hashlib
import os
import pathlib
import shutil

from absl import flags

import pipeline
from keras_mae import commandline, recipes
from keras_mae.recipe_display import define_display_flags, display
from keras_mae.recipes.pretraining import PRETRAIN_NOTES
from keras_mae.run_flags import POSITIONS, define_run_flags, run_options
from keras_mae.training.model_card import NAME as CARD

FLAGS = flags.FLAGS


KEPT_TARGETS = {"pca": "target/pca.npz", "tokens": "target/tokenizer.keras"}  # in the run folder


def build_mae(recipe, policy, target_file=None):
    """The recipe's masked autoencoder.

    Args:
        recipe: a `PretrainRecipe`.
        policy: Keras dtype policy.
        target_file: where the target's file lies now; None: where the recipe says.

    Raises:
        ValueError: sizes, mask or target do not fit each other, or the target's file is of another kind.
    """
    from keras_mae.models import MaskedAutoencoder, VisionTransformer

    encoder = VisionTransformer(**recipes.structure(recipe), dtype=policy)
    return MaskedAutoencoder(
        encoder,
        decoder_embed_dim=recipe.decoder_embed_dim,
        decoder_depth=recipe.decoder_depth,
        decoder_num_heads=recipe.decoder_num_heads,
        mask_ratio=recipe.mask_ratio,
        norm_pix_loss=recipe.norm_pix_loss,
        seed=recipe.seed,
        mask_kind=recipe.mask_kind,
        target=read_target(recipe.target, target_file or recipe.target_file, encoder),
        encoder_mask_tokens=recipe.encoder_mask_tokens,
        loss_on_all_patches=recipe.loss_on_all_patches,
    )


def read_target(kind, path, encoder):
    """The target layer of `--target`; None for pixels, which the model makes by itself."""
    if kind == "pca":
        from keras_mae.models.pca_target import PCATarget

        return PCATarget.from_file(path, encoder)
    if kind == "tokens":
        from keras_mae.models.token_target import TokenTarget
        from keras_mae.pretrain_tokenizer import load_tokenizer

        return TokenTarget(load_tokenizer(path))
    return None


def kept_target_file(recipe, run_dir):
    """Where a run keeps its copy of the target's file; None for pixels."""
    return pathlib.Path(run_dir, KEPT_TARGETS[recipe.target]) if recipe.target_file else None


def find_target_file(recipe, run_dir):
    """The recipe's target_file, or the run's copy of it where the original is gone; None for pixels.

    Raises:
        ValueError: neither is there.
    """
    if recipe.target_file is None:
        return None
    for path in (pathlib.Path(recipe.target_file), kept_target_file(recipe, run_dir)):
        if path.is_file():
            return path
    raise ValueError(f"There is no file {recipe.target_file} (target_file).")


def keep_target_file(path, kept):
    """Copies the target's file, and the card beside it, into the run folder, which then does without the original."""
    if path == kept:
        return
    kept.parent.mkdir(exist_ok=True)
    for source, copy in ((path.with_name(CARD), kept.with_name(CARD)), (path, kept)):
        if source.is_file():
            temporary = copy.with_name(copy.name + ".tmp")
            shutil.copyfile(source, temporary)
            os.replace(temporary, copy)


def load_run(run_dir):
    """The masked autoencoder of a pre-training run, decoder included, as of its newest checkpoint.

    Raises:
        ValueError: the folder holds no pre-training run, or no checkpoint yet.
    """
    from keras_mae.training.checkpoints import Checkpoints, assign, own_weights
    from keras_mae.training.run_dir import read_description

    description = read_description(pathlib.Path(run_dir)) or {}
    if description.get("command") != "pretrain":
        raise ValueError(f"{run_dir} is not the run folder of a pre-training: it has no recipe.json of one.")
    newest = Checkpoints(pathlib.Path(run_dir, "checkpoints")).newest()
    if newest is None:
        raise ValueError(f"{run_dir} has no checkpoint yet.")
    recipe = recipes.PretrainRecipe(**recipes.from_json(description["recipe"]))
    model = build_mae(recipe, "float32", kept_target_file(recipe, run_dir))
    model.build()
    weights = own_weights(model)
    wanted = {v.path for v in weights}
    assign(weights, {name: a for name, a in newest[1].items() if name in wanted}, source=str(run_dir))
    return model


def knn_evaluations(recipe, data, has_classes, strategy):
    """`Task.evaluations` of `--knn_every_epochs`.

    Raises:
        ValueError: the data has no classes, no validation split, or too few samples.
    """
    from keras_mae.evaluation.knn import K, check_classes, watch_knn

    if recipe.knn_every_epochs is None:
        return ()
    if not has_classes:
        raise ValueError("knn_every_epochs needs a shard set with classes; this one has none.")
    if data.validation is None:
        raise ValueError("knn_every_epochs needs a validation split: give --val_split.")
    samples = min(recipe.knn_samples or data.samples, data.samples)
    if samples < K:
        raise ValueError(f"knn_every_epochs looks for {K} neighbours. Received: {samples} samples to find them in")
    for dataset in (data.in_order(), data.validation()):
        check_classes(dataset, strategy)
    return ((recipe.knn_every_epochs, functools.partial(watch_knn, samples=recipe.knn_samples)),)


def main(argv):
    if display(FLAGS, recipes.PRETRAIN_RECIPES, PRETRAIN_NOTES):
        return 0

    from keras_mae.evaluation.knn import KnnError
    from keras_mae.run_data import open_data
    from keras_mae.training.adamw import AdamW
    from keras_mae.training.initial_weights import fingerprint, load_initial_weights
    from keras_mae.training.model_card import run_card
    from keras_mae.training.run import RUN_ERRORS, Task, run, start_devices
    from keras_mae.training.saved_model import export
    from keras_mae.training.workers import HostError, is_chief, named_host_errors

    with commandline.user_mistakes(ValueError, HostError), named_host_errors():
        if FLAGS["positions"].present and not FLAGS.init:
            raise ValueError("--positions is about the position tables of --init, which is not given.")
        recipe = recipes.recipe_from_flags(recipes.PRETRAIN_RECIPES, FLAGS)
        options = run_options(FLAGS)
        devices = start_devices(options, recipe)
        target_file = find_target_file(recipe, options.run_dir)
        model = build_mae(recipe, devices.policy, target_file)  # also checks that all fits
        data = open_data(FLAGS, recipe, view="pretrain", noise={"noise": model.num_draws}, strategy=devices.strategy)
        if target_file:
            data.identity["target_file"] = hashlib.sha256(target_file.read_bytes()).hexdigest()
        has_classes = bool(pipeline.load_manifest(FLAGS.data).classes)
        evaluations = knn_evaluations(recipe, data, has_classes, devices.strategy)
        init, positions = FLAGS.init, FLAGS.positions
        card = run_card("keras_mae.pretrain", init, FLAGS.recipe, FLAGS.data, target_file)
        if init:
            load_initial_weights(model, init, positions)  # also checks that they fit
            data.identity["init"] = fingerprint(model)

    def build_model(policy):
        if target_file and is_chief(devices.strategy):
            keep_target_file(target_file, kept_target_file(recipe, options.run_dir))
        model = build_mae(recipe, policy, target_file)
        if init:
            load_initial_weights(model, init, positions)
        return model

    task = Task(
        command="pretrain",
        build_model=build_model,
        build_optimizer=lambda model, schedule: AdamW(
            schedule, weight_decay=recipe.weight_decay, beta_1=recipe.beta_1, beta_2=recipe.beta_2
        ),
        export=lambda model, folder: export(model.encoder, folder, card, data.image_dtype, run_dir=options.run_dir),
        draw=draw_reconstructions if model.can_reconstruct else None,
        evaluations=evaluations,
    )
    with commandline.user_mistakes(*RUN_ERRORS, KnnError):
        run(task, recipe, data, options, devices)
    return 0


def draw_reconstructions(model, features):
    """Original | masked | reconstruction, side by side, for TensorBoard: the first three channels, or the first."""
    from keras import ops

    masked, reconstruction = model.reconstruct(features)
    pictures = ops.concatenate([features["image"], masked, reconstruction], axis=2)
    shown = 3 if model.encoder.channels >= 3 else 1
    return {"original_masked_reconstruction": pictures[..., :shown]}


def define_flags():
    recipes.define_recipe_flags(recipes.PRETRAIN_RECIPES)
    define_run_flags()
    define_display_flags()
    flags.DEFINE_string("init", None, "Whole masked autoencoder to go on from: mae.keras, run folder or safetensors.")
    flags.DEFINE_enum("positions", "resize", POSITIONS, "Position tables of --init under another --image_size.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
