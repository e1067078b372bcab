"""Vision Transformer, masked autoencoder with its targets, and classifier, in `keras.ops` only."""

from keras_mae.models.classifier import Classifier
from keras_mae.models.discrete_vae import DiscreteVAE
from keras_mae.models.linear_probe import LinearProbe
from keras_mae.models.mae import MaskedAutoencoder
from keras_mae.models.pca_target import PCATarget
from keras_mae.models.targets import PixelTarget
from keras_mae.models.token_target import TokenTarget
from keras_mae.models.vit import VIT_SIZES, VisionTransformer, vit

__all__ = [
    "VIT_SIZES",
    "Classifier",
    "DiscreteVAE",
    "LinearProbe",
    "MaskedAutoencoder",
    "PCATarget",
    "PixelTarget",
    "TokenTarget",
    "VisionTransformer",
    "vit",
]
