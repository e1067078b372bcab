"""Fine-tunes a SavedModel with TensorFlow and Keras 3 alone: keras_mae need not be installed.

python examples/transfer_with_tensorflow.py --saved_model=runs/base/export/saved_model --images=train.npz

AdamW with a learning rate for each layer and decay where fine-tuning decays, over the groups that the SavedModel names.
An .npz file holds `images`, uint8 (n, height, width, channels) of the size that the SavedModel takes, and `labels`,
whole numbers from 0. Augmentation is left to you.
"""

import argparse
import json
import pathlib
import zipfile

import keras
import numpy as np
import tensorflow as tf


class Classifier(tf.Module):
    """The SavedModel's features and a new linear head."""

    def __init__(self, backbone, num_classes):
        super().__init__(name="classifier")
        self.backbone = backbone
        self.features = backbone.signatures["features"]
        width = self.features.structured_outputs["patch_mean"].shape[-1]
        self.kernel = tf.Variable(tf.random.stateless_normal((width, num_classes), seed=(0, 0)) / 100, name="kernel")
        self.bias = tf.Variable(tf.zeros(num_classes), name="bias")

    def __call__(self, images):
        """Logits (batch, num_classes) of uint8 images."""
        return tf.matmul(self.features(image=images)["patch_mean"], self.kernel) + self.bias

    def groups(self, structure):
        """{(layer, decayed): variables} of all that trains; the variables are paired with `structure` by order."""
        used = {v.ref() for v in self.features.variables}
        top = structure["head_layer"]
        groups = {(top, True): [self.kernel], (top, False): [self.bias]}
        for v, layer, decayed in zip(self.backbone.variables, structure["layers"], structure["decayed"], strict=True):
            if v.ref() in used:
                groups.setdefault((layer, decayed), []).append(v)
        return groups


def build_optimizers(groups, learning_rate, weight_decay, layer_decay, steps):
    """An optimizer for each group: each layer learns `layer_decay` times as fast as the one above it."""
    top = max(layer for layer, _ in groups)
    optimizers = {}
    for (layer, decayed), variables in groups.items():
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate * layer_decay ** (top - layer), steps)
        optimizers[layer, decayed] = keras.optimizers.AdamW(schedule, weight_decay=weight_decay * decayed)
        optimizers[layer, decayed].build(variables)
    return optimizers


def train(model, structure, images, labels, options):
    """Fine-tunes all that the features come from, and the head; prints the loss of each epoch."""
    groups = model.groups(structure)
    steps = options.epochs * -(-len(images) // options.batch_size)
    optimizers = build_optimizers(groups, options.learning_rate, options.weight_decay, options.layer_decay, steps)

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
            loss = tf.reduce_mean(losses)
        for key, gradients in tape.gradient(loss, groups).items():
            optimizers[key].apply(gradients, groups[key])
        return losses

    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=0).batch(options.batch_size)
    for epoch in range(options.epochs):
        losses = np.concatenate([step(*batch) for batch in data])
        print(f"epoch {epoch + 1}: loss {losses.mean():.4f}", flush=True)


def open_saved_model(folder):
    """The SavedModel, and what it says of its variables."""
    try:
        structure = json.loads((folder / "assets.extra" / "keras_mae.json").read_text())
        backbone = tf.saved_model.load(str(folder))
    except (OSError, ValueError, LookupError, tf.errors.OpError) as error:
        raise SystemExit(f"{folder} is no whole SavedModel of keras_mae: {error}") from None
    if "layers" not in structure:
        raise SystemExit(f"{folder} does not name groups of variables: export the model anew.")
    if any(v.dtype != tf.float32 for v in backbone.signatures["features"].variables):
        raise SystemExit(f"{folder} was written in low precision, for use; fine-tune one of float32.")
    return backbone, structure


def read_images(path, spec):
    """Images and labels of an .npz file."""
    try:
        with np.load(path) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{path} is no .npz file with images and labels: {error}") from None
    if images.dtype != spec.dtype.as_numpy_dtype or not spec.shape.is_compatible_with(images.shape):
        raise SystemExit(f"{path} holds {images.dtype} {images.shape}; the model takes {spec.dtype.name} {spec.shape}.")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or len(labels) == 0 or labels.min() < 0:
        raise SystemExit(
            f"{path} has {len(images)} images and labels {labels.dtype} {labels.shape}; every image needs a whole "
            "number from 0 on."
        )
    return images, labels.astype("int32")


def accuracy(model, images, labels, batch_size):
    """Share of the images that the model puts into their class."""
    predict = tf.function(lambda batch: tf.argmax(model(batch), axis=1, output_type=tf.int32))
    batches = tf.data.Dataset.from_tensor_slices(images).batch(batch_size)
    return np.mean(np.concatenate([predict(batch) for batch in batches]) == labels)


def save(model, folder, spec):
    """Writes a SavedModel with the signature `classify`."""

    @tf.function(input_signature=[spec])
    def classify(image):
        logits = model(image)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    tf.saved_model.save(model, str(folder), signatures={"classify": classify, "serving_default": classify})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saved_model", type=pathlib.Path, required=True, help="folder that keras_mae exported")
    parser.add_argument("--images", required=True, help=".npz to train on")
    parser.add_argument("--val_images", help=".npz to measure accuracy on; unset: those to train on")
    parser.add_argument("--output", help="folder for the fine-tuned SavedModel")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of the head, at the start; falls to 0")
    parser.add_argument("--layer_decay", type=float, default=0.75, help="factor from a layer's rate to the one below")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    options = parser.parse_args()

    backbone, structure = open_saved_model(options.saved_model)
    spec = backbone.signatures["features"].structured_input_signature[1]["image"]
    images, labels = read_images(options.images, spec)
    val_images, val_labels = read_images(options.val_images or options.images, spec)
    model = Classifier(backbone, num_classes=labels.max() + 1)
    train(model, structure, images, labels, options)
    share = accuracy(model, val_images, val_labels, options.batch_size)
    print(f"accuracy {share:.3f} on {len(val_images)} images")
    if options.output:
        save(model, options.output, spec)


if __name__ == "__main__":
    main()
