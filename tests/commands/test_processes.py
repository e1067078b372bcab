"""What needs a process of its own: two virtual devices."""

import os
import subprocess
import sys

import numpy as np
from fixtures.commands import TINY, TINY_DECODER

from keras_mae.training.metrics_log import read_rows


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def finish(process):
    output = process.communicate(timeout=280)[0]
    assert process.returncode == 0, output[-3000:]
    return output


def losses(run_dir):
    return {row["step"]: row["loss"] for row in read_rows(run_dir / "metrics.jsonl") if "loss" in row}


PRETRAIN = ("-m", "keras_mae.pretrain", *TINY, *TINY_DECODER, "--checkpoint_every_steps=5")


def test_two_virtual_cpus_give_the_losses_of_one(halves_set, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = (*PRETRAIN, f"--data={halves_set}", "--steps=8")
    output = finish(start(*flags, f"--run_dir={two}", "--strategy=mirrored", "--virtual_cpus=2"))
    assert "on 2 replica(s)" in output
    finish(start(*flags, f"--run_dir={one}"))
    a, b = losses(one), losses(two)
    assert list(a) == list(b) == list(range(1, 9))
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-5)


REPLICA_MASKS = """
import sys
import numpy as np, tensorflow as tf
import pipeline
from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.training.strategy import make_strategy, split_cpu

split_cpu(2, "mirrored")
strategy = make_strategy("mirrored")
with strategy.scope():
    encoder = VisionTransformer(8, 2, 1, 16, 2, 2, pixel_mean=.5, pixel_std=.5)
    model = MaskedAutoencoder(encoder, 16, 1, 2)
    model.build()
dataset = pipeline.load(sys.argv[1], split="train", view="pretrain", batch_size=8, image_size=8, channels=1,
                        noise={"noise": 16})
step = tf.function(lambda batch: strategy.run(lambda b: (model(b)["mask"], b["index"]), args=(batch,)))
masks, indices = [], []
iterator = iter(strategy.experimental_distribute_dataset(dataset))
for _ in range(20):
    mask, index = step(next(iterator))
    replicas = [np.asarray(m) for m in strategy.experimental_local_results(mask)]
    assert len(replicas) == 2 and replicas[0].shape == (4, 16), [r.shape for r in replicas]
    assert not any((a == b).all() for a in replicas[0] for b in replicas[1]), "two replicas drew the same mask"
    masks += list(np.concatenate(replicas))
    indices += [i for r in strategy.experimental_local_results(index) for i in np.asarray(r).tolist()]
single = [i for b in dataset.take(20) for i in b["index"].numpy().tolist()]
assert indices == single, "replica r must take the r-th slice of each batch"
print("masks differ", len(masks))
"""


def test_replicas_draw_different_masks_and_take_their_slices(halves_set):
    output = finish(start("-c", REPLICA_MASKS, halves_set))
    assert "masks differ 160" in output
