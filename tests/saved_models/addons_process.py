"""A process of TensorFlow 2.15 and tensorflow-addons: python -I addons_process.py EXAMPLE SAVED_MODEL IMAGES OUTPUT.npz

Writes the features of all images, and of one step of the example's optimizer on them each variable before and after,
and its gradient.
"""

import argparse
import importlib.util
import json
import pathlib
import runpy

import numpy as np
import tensorflow as tf

RATES = {"learning_rate": 0.01, "weight_decay": 0.1, "layer_decay": 0.5, "steps": 1000}


def one_step(example, saved_model, images, labels):
    """{"before NAME", "gradient NAME", "after NAME": array} of all that trains."""
    structure = json.loads((saved_model / "assets.extra" / "keras_mae.json").read_text())
    model = example["Classifier"](tf.saved_model.load(str(saved_model)), 2)
    groups = model.groups(structure)
    variables = [v for group in groups.values() for v in group]
    optimizer = example["build_optimizer"](groups, **RATES)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images)))
    gradients = tape.gradient(loss, variables)
    found = {f"before {v.name}": v.numpy() for v in variables}
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    found.update({f"gradient {v.name}": g.numpy() for v, g in zip(variables, gradients, strict=True)})
    found.update({f"after {v.name}": v.numpy() for v in variables})
    return found


def main():
    parser = argparse.ArgumentParser()
    for name in ("example", "saved_model", "images", "output"):
        parser.add_argument(name, type=pathlib.Path)
    options = parser.parse_args()
    if importlib.util.find_spec("keras_mae") or not tf.__version__.startswith("2.15."):
        raise SystemExit(f"This environment has TensorFlow {tf.__version__}, or keras_mae.")
    with np.load(options.images) as file:
        images, labels = file["images"], file["labels"].astype("int32")
    loaded = tf.saved_model.load(str(options.saved_model))
    found = {name: value.numpy() for name, value in loaded.signatures["features"](image=tf.constant(images)).items()}
    example = runpy.run_path(str(options.example))
    found.update(one_step(example, options.saved_model, images, labels))
    np.savez(options.output, **found)


if __name__ == "__main__":
    main()
