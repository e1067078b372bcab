"""Masked autoencoders (arXiv 2111.06377) for Keras 3.

`from keras_mae import MaskedAutoencoder, vit` ...: names are loaded on first use, so that the commands which need
neither Keras nor TensorFlow start at once.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "keras_mae.models",
    "MaskedAutoencoder": "keras_mae.models",
    "VisionTransformer": "keras_mae.models",
    "vit": "keras_mae.models",
    "AdamW": "keras_mae.training.adamw",
    "Backbone": "keras_mae.training.backbone",
    "LARS": "keras_mae.training.lars",
    "WarmupCosine": "keras_mae.training.schedules",
    "SavedModelLayer": "keras_mae.training.saved_model_layer",
    "export": "keras_mae.training.saved_model",
    "load_encoder": "keras_mae.training.saved_model",
    "load_model": "keras_mae.training.saved_model",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
