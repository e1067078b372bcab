"""Fine-tunes a pre-trained encoder end to end as a classifier, or trains the same ViT from scratch.

python -m keras_mae.finetune --recipe=vit_base --encoder=runs/base/export --data=SHARDS --run_dir=runs/base-finetuned

`--encoder` takes `encoder.keras`, a `saved_model` folder, or the export folder that holds both. With another
`--image_size` than the encoder's its position table is resized, or computed anew (`--positions`). With
`--trainable_blocks=4` only the last blocks and the head train. Every field of the recipe is a flag. The same command
again goes on where the run stopped. Ends with RUN_DIR/export/classifier.keras and RUN_DIR/export/saved_model, and with
the weights of the best evaluation in RUN_DIR/export/best.
"""

from absl import flags

import pipeline
from keras_mae import commandline, recipes
from keras_mae.recipe_display import define_display_flags, display
from keras_mae.recipe_encoder import load_recipe_encoder
from keras_mae.recipes.finetuning import FINETUNE_NOTES
from keras_mae.run_flags import define_encoder_flags, define_run_flags, run_options

FLAGS = flags.FLAGS


def open_encoder(path, recipe, policy="float32", positions="resize"):
    """The saved encoder as `load_recipe_encoder` gives it, without its final norm, with the recipe's drop path."""
    changes = {"final_norm": False, "drop_path_rate": recipe.drop_path_rate}
    return load_recipe_encoder(path, recipe, policy, positions, **changes)


def new_encoder(recipe, policy="float32"):
    """The recipe's ViT with new weights."""
    from keras_mae.models import VisionTransformer

    return VisionTransformer(
        **recipes.structure(recipe), final_norm=False, drop_path_rate=recipe.drop_path_rate, dtype=policy
    )


def noise_features(recipe):
    """How many uniform draws a sample needs in training, by the feature that brings them."""
    from keras_mae.layers.batch_augmentation import ERASING_DRAWS, MIX_DRAWS

    noise = {"drop_noise": 2 * recipe.depth}
    if recipe.mixup or recipe.cutmix:
        noise["mix_noise"] = MIX_DRAWS
    if recipe.erasing:
        noise["erasing_noise"] = ERASING_DRAWS
    return noise


def build_optimizer(model, schedule, recipe):
    """AdamW with layer-wise decay of what is trained; class token and positions are not decayed."""
    from keras_mae.training.adamw import AdamW
    from keras_mae.training.layer_decay import layer_decay_scales

    return AdamW(
        schedule,
        weight_decay=recipe.weight_decay,
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        no_decay=("class_token", "position_embedding/table") if recipe.trainable_blocks is None else (),
        learning_rate_scales=layer_decay_scales(model, recipe.layer_decay),
    )


def main(argv):
    if display(FLAGS, recipes.FINETUNE_RECIPES, FINETUNE_NOTES):
        return 0

    from keras_mae.models import Classifier
    from keras_mae.models.freezing import freeze_encoder
    from keras_mae.run_data import open_data
    from keras_mae.training.initial_weights import fingerprint
    from keras_mae.training.model_card import run_card
    from keras_mae.training.run import RUN_ERRORS, Task, run, start_devices
    from keras_mae.training.saved_model import export
    from keras_mae.training.workers import HostError, named_host_errors

    with commandline.user_mistakes(ValueError, HostError), named_host_errors():
        recipe = recipes.recipe_from_flags(recipes.FINETUNE_RECIPES, FLAGS)
        if (FLAGS.encoder is None) != recipe.from_scratch:
            raise ValueError(
                "Give either --encoder=PATH, or --from_scratch (or a recipe that says so) to train without "
                f"pre-training. Received: encoder={FLAGS.encoder}, from_scratch={recipe.from_scratch}"
            )
        if recipe.from_scratch and FLAGS["positions"].present:
            raise ValueError("--positions is about the position table of --encoder; from_scratch has none.")
        options = run_options(FLAGS)
        devices = start_devices(options, recipe)
        path = FLAGS.encoder
        new_encoder(recipe)  # checks the sizes
        begins_with = fingerprint(open_encoder(path, recipe, positions=FLAGS.positions)) if path else "scratch"
        card = run_card("keras_mae.finetune", path, FLAGS.recipe, FLAGS.data)
        positions = FLAGS.positions
        data = open_data(FLAGS, recipe, view="train", noise=noise_features(recipe), strategy=devices.strategy)
        data.identity["encoder"] = begins_with
        classes = pipeline.load_manifest(FLAGS.data).classes

    def build_model(policy):
        encoder = open_encoder(path, recipe, policy, positions) if path else new_encoder(recipe, policy)
        model = Classifier(
            encoder,
            len(classes),
            label_smoothing=recipe.label_smoothing,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            mixup_prob=recipe.mixup_prob,
            mixup_switch_prob=recipe.mixup_switch_prob,
            erasing=recipe.erasing,
        )
        model.build()
        if recipe.trainable_blocks is not None:
            freeze_encoder(encoder, recipe.trainable_blocks)
        return model

    task = Task(
        command="finetune",
        build_model=build_model,
        build_optimizer=lambda model, schedule: build_optimizer(model, schedule, recipe),
        export=lambda model, folder: export(model, folder, card, data.image_dtype, classes, options.run_dir),
        best_metric="accuracy",
    )
    with commandline.user_mistakes(*RUN_ERRORS):
        run(task, recipe, data, options, devices)
    return 0


def define_flags():
    recipes.define_recipe_flags(recipes.FINETUNE_RECIPES)
    define_run_flags()
    define_display_flags()
    define_encoder_flags()


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
