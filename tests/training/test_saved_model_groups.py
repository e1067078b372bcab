"""The groups of variables that a SavedModel names are those that fine-tuning here trains by."""

import json

import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae import finetune, recipes
from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.saved_model import STRUCTURE, export, load_model, variable_groups

RECIPE = recipes.FINETUNE_RECIPES["vit_base"]


def groups(folder):
    """{path: (shape, layer, decayed)} of a SavedModel, its variables paired with the structure by their order."""
    structure = json.loads((folder / STRUCTURE).read_text())
    variables = tf.saved_model.load(str(folder)).variables
    named = zip(structure["variables"], variables, structure["layers"], structure["decayed"], strict=True)
    return {path: (tuple(variable.shape), layer, decayed) for path, variable, layer, decayed in named}


@pytest.fixture(scope="module")
def classifier_export(tmp_path_factory):
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False, drop_path_rate=0.1), num_classes=3)
    classifier.build()
    folder = tmp_path_factory.mktemp("classifier") / "export"
    export(classifier, folder)
    return folder


def test_they_are_the_rates_and_decays_of_the_optimizer(classifier_export):
    model = load_model(classifier_export / "classifier.keras")
    optimizer = finetune.build_optimizer(model, 1e-3, RECIPE)
    optimizer.build(model.trainable_variables)
    found = groups(classifier_export / "saved_model")
    trained = {}
    for variable, scale, decay in zip(model.trainable_variables, optimizer._scales, optimizer._decays, strict=True):
        path = variable.path.removeprefix("classifier/")
        shape, layer, decayed = found[path]
        assert shape == tuple(variable.shape)
        assert RECIPE.layer_decay ** (model.encoder.depth + 1 - layer) == pytest.approx(scale, rel=1e-12), path
        assert RECIPE.weight_decay * decayed == decay, path
        trained[path] = layer
    assert set(trained.values()) == {0, 1, 2, 3}
    (left,) = (path for path in found if path not in trained)
    assert left.startswith("encoder/block_1/seed_generator")  # of drop path


def test_an_encoder_alone_has_the_same_groups_and_its_norm_on_top(classifier_export):
    encoder = VisionTransformer(**TINY_VIT)
    encoder.build()
    named = variable_groups(encoder)
    paths = [v.path.removeprefix("encoder/") for v in encoder.variables]
    found = dict(zip(paths, zip(named["layers"], named["decayed"], strict=True), strict=True))
    assert [found.pop(path) for path in ("norm/gamma", "norm/beta")] == [(named["head_layer"], False)] * 2
    inside = groups(classifier_export / "saved_model")
    assert {path: inside[f"encoder/{path}"][1:] for path in found} == found
    assert len(found) == 28
