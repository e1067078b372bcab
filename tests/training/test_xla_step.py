"""What can be known of a TPU without one: the whole train step is one XLA program that needs nothing of the host."""

import re

import numpy as np
import pytest
import tensorflow as tf
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, MaskedAutoencoder, VisionTransformer
from keras_mae.training.adamw import AdamW
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.trainer import Trainer

# Python, files and messages to a host: what a TPU core cannot do by itself.
HOST_OPS = re.compile(r"PyFunc|HostCompute|Print|Infeed|Outfeed|Iterator|ReadFile|_Send|_Recv|XlaHost|Assert$")
HOST_INSTRUCTIONS = ("infeed", "outfeed", "send", "recv", "custom-call", "get-dimension-size")


def pretraining():
    model = MaskedAutoencoder(VisionTransformer(**TINY_VIT), 16, 1, 2)
    return model, {"image": tf.zeros((4, 8, 8, 1), tf.uint8), "noise": noise(4, 16)}


def finetuning():
    """With everything that draws: drop path, mixup, cutmix and erasing."""
    encoder = VisionTransformer(**TINY_VIT, final_norm=False, drop_path_rate=0.2)
    model = Classifier(encoder, num_classes=3, mixup=0.8, cutmix=1.0, erasing=0.25, label_smoothing=0.1)
    features = {"image": tf.zeros((4, 8, 8, 1), tf.uint8)}
    return model, ({**features, **noise_of(model)}, tf.constant([0, 1, 2, 0]))


def noise(*shape):
    return tf.constant(np.random.default_rng(0).random(shape, dtype="float32"))


def noise_of(classifier):
    from keras_mae.layers.batch_augmentation import ERASING_DRAWS, MIX_DRAWS

    draws = {"drop_noise": 2 * classifier.encoder.depth, "mix_noise": MIX_DRAWS, "erasing_noise": ERASING_DRAWS}
    return {name: noise(4, count) for name, count in draws.items()}


@pytest.mark.parametrize("make", [pretraining, pytest.param(finetuning, marks=pytest.mark.slow)])
def test_the_whole_train_step_is_one_xla_program_without_host_ops(make):
    model, data = make()
    model.build()
    optimizer = AdamW(WarmupCosine(0.1, 10, 2), weight_decay=0.05)
    optimizer.build(model.trainable_variables)
    trainer = Trainer(model)
    trainer.compile(optimizer=optimizer, jit_compile=False)
    step = tf.function(lambda batch: trainer.train_step(batch)["loss"], jit_compile=True, autograph=False)

    graph = step.get_concrete_function(data).graph.as_graph_def()
    ops = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert "ResourceApplyAdam" in ops or "AssignVariableOp" in ops or "AssignSubVariableOp" in ops
    assert not [op for op in ops if HOST_OPS.search(op)]

    program = step.experimental_get_compiler_ir(data)(stage="hlo")
    instructions = set(re.findall(r" = .*? ([a-z][a-z0-9-]*)\(", program))
    assert "dot" in instructions
    assert instructions.isdisjoint(HOST_INSTRUCTIONS), sorted(instructions)
    assert "<=" not in program, "a shape is dynamic"

    before = model.trainable_variables[0].numpy().copy()
    assert np.isfinite(float(step(data))) and np.isfinite(float(step(data)))  # the first has a learning rate of 0
    assert np.any(model.trainable_variables[0].numpy() != before)
