"""Sizes equal to those of the reference implementation's checkpoints (numbers of weights and of tensors)."""

import math

import keras
import pytest

from keras_mae.models import Classifier, MaskedAutoencoder, vit

# Parameters and tensors of the published checkpoints: encoder, with decoder, fine-tuned with 1000 classes.
PUBLISHED = {
    "base": ((85_798_656, 150), (111_907_840, 254), (86_567_656, 152)),
    "large": ((303_301_632, 294), (329_541_888, 398), (304_326_632, 296)),
    "huge": ((630_764_800, 390), (657_074_508, 494), (632_045_800, 392)),
}


@pytest.fixture
def shapes_only():
    """Builds models whose variables have a shape and no value: Huge would take 2.6 GB."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    keras.utils.clear_session()  # forget the variables that wait for a value


def size(model):
    model.build()
    return sum(math.prod(weight.shape) for weight in model.weights), len(model.weights)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_checkpoints(name, shapes_only):
    autoencoder = MaskedAutoencoder(vit(name))
    classifier = Classifier(vit(name, final_norm=False), num_classes=1000)
    assert (size(autoencoder.encoder), size(autoencoder), size(classifier)) == PUBLISHED[name]


def test_base_encoder_built_for_real_has_the_same_size():
    model = vit("base")
    assert size(model) == PUBLISHED["base"][0]
    assert model.count_params() == PUBLISHED["base"][0][0]


def test_position_tables_are_frozen_in_pretraining_and_trained_in_fine_tuning(shapes_only):
    autoencoder, classifier = MaskedAutoencoder(vit("base")), Classifier(vit("base", final_norm=False), 1000)
    autoencoder.build(), classifier.build()
    frozen = [weight.path.split("/", 1)[1] for weight in autoencoder.non_trainable_weights]
    assert [name.rsplit("/", 2)[1:] for name in frozen] == [["position_embedding", "table"]] * 2
    assert classifier.non_trainable_weights == []
