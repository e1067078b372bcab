"""A process without this package: python -I plain_process.py SAVED_MODEL IMAGES.npz OUTPUT.npz LAYER.py EXAMPLE ARGS...

Loads the SavedModel with TensorFlow alone and writes the features of batches of 1, 7 and 64 images; trains it as the
Keras layer that LAYER.py defines, and puts a head on a frozen TFSMLayer; then runs the example with its arguments.
"""

import runpy
import sys

import keras
import numpy as np
import tensorflow as tf

BATCHES = (1, 7, 64)  # the last ones hold the first 7 images again and again


def keep_out(*packages):
    """Imports of these fail from here on, wherever they are installed."""
    for package in packages:
        sys.modules[package] = None
        try:
            __import__(package)
        except ImportError:
            continue
        sys.exit(f"{package} can be imported.")


def features_of_batches(saved_model, images):
    loaded = tf.saved_model.load(saved_model)
    found = {}
    for batch in BATCHES:
        outputs = loaded.signatures["features"](image=tf.constant(images[np.arange(batch) % 7]))
        found.update({f"{name} {batch}": value.numpy() for name, value in outputs.items()})
    return found


def fit(layer, images, labels):
    """Losses of some epochs of Adam with a head on the layer, and the layer's weights before and after."""
    image = keras.Input((8, 8, 1), dtype="uint8")
    model = keras.Model(image, keras.layers.Dense(2)(layer(image)["patch_mean"]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    before = [w.numpy() for w in layer.weights]
    history = model.fit(images, labels, batch_size=32, epochs=5, shuffle=False, verbose=0)
    return history.history["loss"], [np.abs(w.numpy() - b).max() for w, b in zip(layer.weights, before, strict=True)]


def main(saved_model, images_file, output, layer_file, example, *arguments):
    keep_out("keras_mae", "pipeline", "tools")
    with np.load(images_file) as file:
        images, labels = file["images"], file["labels"]
    found = features_of_batches(saved_model, images)
    layer_class = runpy.run_path(layer_file)["Features"]
    found["losses of the layer"], found["moved in the layer"] = fit(layer_class(saved_model), images, labels)
    frozen = keras.layers.TFSMLayer(saved_model, call_endpoint="features", trainable=False)
    found["losses of a frozen layer"], found["moved in a frozen layer"] = fit(frozen, images, labels)
    np.savez(output, **found)
    sys.argv = [example, *arguments]
    runpy.run_path(example, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
