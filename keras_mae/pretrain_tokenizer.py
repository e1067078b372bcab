"""Trains a discrete VAE on a shard set, without labels: the tokenizer of the dVAE token target (Table 1d).

python -m keras_mae.pretrain_tokenizer --recipe=dvae_small --data=SHARDS --run_dir=runs/tokenizer

Every field of the recipe is a flag. The same command again goes on where the run stopped. Ends with
RUN_DIR/export/tokenizer.keras. tools.convert_tokenizer makes such a file from DALL-E's published weights instead.
"""

import os
import pathlib
import shutil

from absl import flags

from keras_mae import commandline, recipes
from keras_mae.recipe_display import define_display_flags, display
from keras_mae.recipes.tokenizer import TOKENIZER_NOTES, TOKENIZER_RECIPES
from keras_mae.run_flags import define_run_flags, run_options

FLAGS = flags.FLAGS
FILE_NAME = "tokenizer.keras"


def build_tokenizer(recipe, policy="float32"):
    """The recipe's discrete VAE."""
    from keras_mae.models.discrete_vae import DiscreteVAE

    return DiscreteVAE(
        channels=recipe.channels,
        num_codes=recipe.num_codes,
        hidden_dim=recipe.hidden_dim,
        blocks_per_group=recipe.blocks_per_group,
        code_dim=recipe.code_dim,
        temperature=recipe.min_temperature,
        kl_weight=recipe.kl_weight,
        seed=recipe.seed,
        dtype=policy,
    )


def build_optimizer(model, schedule, recipe, steps):
    """AdamW, whose updates temperature and KL weight follow over the run of so many steps."""
    from keras.optimizers.schedules import CosineDecay, PolynomialDecay

    from keras_mae.training.adamw import AdamW

    optimizer = AdamW(schedule, weight_decay=recipe.weight_decay, beta_1=recipe.beta_1, beta_2=recipe.beta_2)
    model.anneal(
        optimizer,
        temperature=CosineDecay(
            recipe.temperature,
            decay_steps=max(1, round(recipe.temperature_share * steps)),
            alpha=recipe.min_temperature / recipe.temperature,
        ),
        kl_weight=PolynomialDecay(
            0.0,
            decay_steps=max(1, round(recipe.kl_warmup_share * steps)),
            end_learning_rate=recipe.kl_weight,
        ),
    )
    return optimizer


def export_tokenizer(model, folder):
    """Writes FOLDER/tokenizer.keras with float32 weights; the folder appears under its name when all is written."""
    from keras_mae.training.saved_model import copy_with_dtype

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    copy_with_dtype(model, "float32").save(partial / FILE_NAME)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_tokenizer(path):
    """A `DiscreteVAE` or `TokenEncoder`.

    Args:
        path: a `.keras` file of this command or of tools.convert_tokenizer, a run folder or its export folder.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    import keras

    from keras_mae.models.discrete_vae import DiscreteVAE
    from keras_mae.models.token_networks import TokenEncoder
    from keras_mae.training.saved_model import LOAD_ERRORS

    path = pathlib.Path(path)
    candidates = (path, path / FILE_NAME, path / "export" / FILE_NAME)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise ValueError(f"There is no tokenizer at {path}: neither a .keras file nor a folder that holds {FILE_NAME}.")
    try:
        model = keras.saving.load_model(file, compile=False)
    except LOAD_ERRORS as error:
        raise ValueError(f"{file} cannot be loaded as a Keras model: {error}") from error
    if not isinstance(model, DiscreteVAE | TokenEncoder):
        raise ValueError(f"{file} holds a {type(model).__name__}, not a tokenizer.")
    return model


def draw_reconstructions(model, features):
    """Original | what the codes keep of it, side by side, for TensorBoard."""
    from keras import ops

    images = features["image"]
    return {"original_reconstruction": ops.concatenate([images, model.reconstruct(images)], axis=2)}


def main(argv):
    if display(FLAGS, TOKENIZER_RECIPES, TOKENIZER_NOTES):
        return 0

    from keras_mae.models.discrete_vae import CODE_DRAWS
    from keras_mae.run_data import open_data
    from keras_mae.training.run import RUN_ERRORS, Task, run, start_devices

    with commandline.user_mistakes():
        recipe = recipes.recipe_from_flags(TOKENIZER_RECIPES, FLAGS)
        options = run_options(FLAGS)
        devices = start_devices(options, recipe)
        data = open_data(FLAGS, recipe, view="pretrain", noise={"code_noise": CODE_DRAWS}, strategy=devices.strategy)
        if data.image_dtype != "uint8":
            raise ValueError(
                f"A tokenizer is trained on uint8 images. Received: a shard set of {data.image_dtype} arrays"
            )

    steps = recipes.total_steps(recipe, data.samples)
    task = Task(
        command="pretrain_tokenizer",
        build_model=lambda policy: build_tokenizer(recipe, policy),
        build_optimizer=lambda model, schedule: build_optimizer(model, schedule, recipe, steps),
        export=export_tokenizer,
        draw=draw_reconstructions,
    )
    with commandline.user_mistakes(*RUN_ERRORS):
        run(task, recipe, data, options, devices)
    return 0


def define_flags():
    recipes.define_recipe_flags(TOKENIZER_RECIPES, default="dvae_small")
    define_run_flags()
    define_display_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
