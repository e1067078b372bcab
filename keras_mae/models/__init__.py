"""Vision Transformer, masked autoencoder and classifier, in `keras.ops` only."""

from keras_mae.models.classifier import Classifier
from keras_mae.models.mae import MaskedAutoencoder
from keras_mae.models.vit import VIT_SIZES, VisionTransformer, vit

__all__ = ["VIT_SIZES", "Classifier", "MaskedAutoencoder", "VisionTransformer", "vit"]
