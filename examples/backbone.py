"""A pre-trained encoder in a Keras model of your own: the head alone first, then all of it.

python examples/backbone.py --encoder=runs/small/export --data=SHARDS --steps=200
"""

import argparse

import keras

import pipeline
from keras_mae import Backbone


def build_model(encoder, num_classes):
    """A classifier on a frozen backbone, and the backbone."""
    backbone = Backbone.from_saved(encoder, outputs="patch_mean", trainable=False)
    image = keras.Input((*backbone.encoder.image_size, backbone.encoder.channels), dtype="uint8")
    return keras.Model(image, keras.layers.Dense(num_classes)(backbone(image))), backbone


def train(model, learning_rate, train_data, val_data, steps):
    """Accuracy on the validation split after so many steps; every image counts once."""
    model.compile(
        keras.optimizers.AdamW(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    model.fit(train_data, steps_per_epoch=steps, shuffle=False, verbose=2)
    return model.evaluate(val_data, verbose=0, return_dict=True)["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="export folder, SavedModel folder or .keras file")
    parser.add_argument("--data", required=True, help="shard set with classes and the splits train and val")
    parser.add_argument("--steps", type=int, default=200, help="of each of the two trainings")
    parser.add_argument("--batch_size", type=int, default=64)
    options = parser.parse_args()

    shards = pipeline.load_manifest(options.data)
    model, backbone = build_model(options.encoder, len(shards.classes))
    size = {"image_size": backbone.encoder.image_size, "channels": backbone.encoder.channels}
    load = {**size, "batch_size": options.batch_size}
    train_data = pipeline.load(shards, split="train", view="train", flip=False, min_area=0.5, **load)
    val_data = pipeline.load(shards, split="val", view="eval", **load)
    train_data = train_data.map(lambda features, labels: (features["image"], labels))
    val_data = val_data.map(lambda features, labels, weights: (features["image"], labels, weights))

    frozen = train(model, 1e-2, train_data, val_data, options.steps)
    backbone.trainable = True
    tuned = train(model, 3e-4, train_data, val_data, options.steps)
    print(f"accuracy with the backbone frozen {frozen:.3f}, trained with the head {tuned:.3f}")


if __name__ == "__main__":
    main()
