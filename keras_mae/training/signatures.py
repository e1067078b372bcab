"""What a SavedModel answers: its signatures, as TensorFlow functions of images.

All take batches of any size, give float32 numbers (and, of a classifier, class numbers and names), and give the same
each time, but for `features_training`, which draws the branches that drop path leaves out anew in every call. All but
`reconstruct` are differentiable.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.models.backbone import tokens_after_blocks

IMAGE_DTYPES = ("uint8", "uint16")
PRECISIONS = ("float32", "bfloat16")
TOP_CLASSES = 5


@dataclasses.dataclass(frozen=True)
class SignatureOptions:
    """How a SavedModel is to be called, and what it is to give.

    Attributes:
        image_dtype: of the images, "uint8" or "uint16": a signature has one type.
        precision: of variables and computation, "float32" or "bfloat16". What goes out is float32.
        layers: numbers of blocks whose tokens `features` gives, too.
        classes: names of a classifier's classes; None: their numbers as text.
        prepare: function of images of any size to images of the model's; None: only these are taken.
        training: whether there is `features_training`.

    Raises:
        ValueError: an unknown type or precision.
    """

    image_dtype: str = "uint8"
    precision: str = "float32"
    layers: Sequence[int] = ()
    classes: Sequence[str] | None = None
    prepare: Callable | None = None
    training: bool = False

    def __post_init__(self):
        for name, known in (("image_dtype", IMAGE_DTYPES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}. Received: {getattr(self, name)!r}")


class Signature(NamedTuple):
    """A function of TensorFlow, what it takes, and the names of what it gives."""

    function: Callable
    inputs: list[tf.TensorSpec]
    outputs: tuple[str, ...]


def make_signatures(model, options: SignatureOptions) -> dict[str, Signature]:
    """The signatures of a model by name, `features` first, which is also `serving_default`.

    Args:
        model: a built `VisionTransformer`, `Classifier` or `MaskedAutoencoder`.
        options: what they are to be like.

    Raises:
        ValueError: names for another number of classes, or a masked autoencoder that cannot reconstruct from given
            noise.
    """
    encoder = model if isinstance(model, VisionTransformer) else model.encoder
    size = encoder.image_size if options.prepare is None else (None, None)
    image = tf.TensorSpec((None, *size, encoder.channels), options.image_dtype, name="image")
    prepare = options.prepare or (lambda images: images)
    outputs = ("class_token", "patch_mean", "tokens", *(f"tokens_after_block_{number}" for number in options.layers))
    found = {"features": Signature(_features(encoder, prepare, options.layers), [image], outputs)}
    if isinstance(model, Classifier):
        outputs = ("logits", "probabilities", "top5_names", "top5_classes", "top5_probabilities")
        found["classify"] = Signature(_classify(model, prepare, options.classes), [image], outputs)
    if isinstance(model, MaskedAutoencoder):
        check_reconstructs(model)
        noise = tf.TensorSpec((None, encoder.num_patches), "float32", name="noise")
        found["reconstruct"] = Signature(_reconstruct(model, prepare), [image, noise], ("reconstruction", "mask"))
    if options.training:
        training = _features(encoder, prepare, options.layers, training=True)
        found["features_training"] = found["features"]._replace(function=training)
    return found


def save_signatures(model, folder: str | os.PathLike, options: SignatureOptions) -> None:
    """Writes a SavedModel of `make_signatures`: its functions, and the variables in the order of the model's.

    The same functions and variables are attributes of what `tf.saved_model.load` gives.
    """
    functions = {
        name: tf.function(signature.function, input_signature=signature.inputs, autograph=False)
        for name, signature in make_signatures(model, options).items()
    }
    signatures = {**functions, "serving_default": functions["features"]}
    tf.saved_model.save(_Servable(model, functions), str(folder), signatures)


class _Servable(tf.Module):
    """What TensorFlow saves: functions and variables under the names that Keras' `ExportArchive` gives them.

    That one saves every weight twice, as its own variable and as TensorFlow's.
    """

    # Lists to be saved; those of `tf.Module` are properties, which are not.
    variables = trainable_variables = non_trainable_variables = ()

    def __init__(self, model, functions):
        super().__init__()
        for name in ("variables", "trainable_variables", "non_trainable_variables"):
            setattr(self, name, [v.value for v in getattr(model, name)])
        for name, function in functions.items():
            setattr(self, name, function)


def check_reconstructs(model) -> None:
    """Raises ValueError unless a `MaskedAutoencoder` can have the signature `reconstruct`."""
    if not model.can_reconstruct:
        raise ValueError(
            f"What this model predicts cannot be shown as pixels: its target is a {type(model.target).__name__}. It "
            "has no signature `reconstruct`."
        )
    if model.mask_kind != "random":
        raise ValueError(
            "The signature `reconstruct` takes one number a patch, as random masks do: mask_kind must be 'random'. "
            f"Received: mask_kind={model.mask_kind!r}"
        )


def model_facts(model, options: SignatureOptions) -> dict:
    """What a card says of a model and its SavedModel: sections of JSON values by name."""
    encoder = model if isinstance(model, VisionTransformer) else model.encoder
    names = ("patch_size", "channels", "embed_dim", "depth", "num_heads", "mlp_ratio", "pixel_mean", "pixel_std")
    structure = {
        "kind": type(model).__name__,
        "parameters": model.count_params(),
        "image_size": list(encoder.image_size),
        **{name: getattr(encoder, name) for name in names},
    }
    if isinstance(model, Classifier):
        structure["num_classes"] = model.num_classes
    size = encoder.image_size if options.prepare is None else ("any height", "any width")
    image = {
        "shape": ["any batch", *size, encoder.channels],
        "dtype": options.image_dtype,
        "range": [0, tf.as_dtype(options.image_dtype).max],
        "normalization": "inside",
    }
    signatures = {name: list(signature.outputs) for name, signature in make_signatures(model, options).items()}
    return {"model": structure, "image": image, "signatures": signatures, "saved_model_precision": options.precision}


def _features(encoder, prepare, layers, training=False):
    last = encoder.depth - 1

    def features(image):
        image, noise = prepare(image), None
        if training:
            noise = tf.random.uniform((tf.shape(image)[0], 2 * encoder.depth))  # (B, 2 * depth)
        found = tokens_after_blocks(encoder, image, sorted({*layers, last}), noise, training)
        found = {number: tf.cast(tokens, "float32") for number, tokens in found.items()}  # (B, N+1, D)
        return {
            "class_token": found[last][:, 0],
            "patch_mean": tf.reduce_mean(found[last][:, 1:], axis=1),
            "tokens": found[last],
            **{f"tokens_after_block_{number}": tf.identity(found[number]) for number in layers},
        }

    return features


def _classify(model, prepare, classes):
    names = [str(number) for number in range(model.num_classes)] if classes is None else list(classes)
    if len(names) != model.num_classes:
        raise ValueError(f"The model knows {model.num_classes} classes. Received: {len(names)} names")
    texts = [name.encode(errors="backslashreplace") for name in names]  # a folder's name need not be valid text

    def classify(image):
        logits = tf.cast(model(prepare(image), training=False), "float32")  # (B, num_classes)
        probabilities = tf.nn.softmax(logits)
        best = tf.math.top_k(probabilities, min(TOP_CLASSES, model.num_classes))
        return {
            "logits": logits,
            "probabilities": probabilities,
            "top5_names": tf.gather(tf.constant(texts), best.indices),
            "top5_classes": best.indices,
            "top5_probabilities": best.values,
        }

    return classify


def _reconstruct(model, prepare):
    def reconstruct(image, noise):
        image = prepare(image)
        mask = model.masking(model.encoder.normalized_patches(image), noise=noise)[2]  # (B, N)
        _, reconstruction = model.reconstruct({"image": image, "noise": noise})
        return {"reconstruction": tf.cast(reconstruction, "float32"), "mask": mask}

    return reconstruct
