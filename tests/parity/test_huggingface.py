"""Our masked autoencoder against Hugging Face's ViTMAE, both run with the same random weights and noise."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.mae_comparison import assert_close, build_ours, compare
from fixtures.make_mae_reference import PIXEL_MEAN, PIXEL_STD, build_reference, draw_batch, run_reference

from keras_mae.training.adamw import AdamW
from keras_mae.training.schedules import WarmupCosine
from keras_mae.training.trainer import Trainer

pytestmark = pytest.mark.parity

SMALL = {
    "image_size": 64,
    "patch_size": 8,
    "channels": 3,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
    "mask_ratio": 0.75,
}
TINY = {  # ViT-Tiny with the usual decoder
    "image_size": 64,
    "patch_size": 16,
    "channels": 3,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
    "decoder_embed_dim": 512,
    "decoder_depth": 8,
    "decoder_num_heads": 16,
    "mask_ratio": 0.75,
}
PAPER = {"image_size": 224, "channels": 3, "decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
PAPER["mask_ratio"] = 0.75
BASE = {**PAPER, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE = {**PAPER, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE = {**PAPER, "patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}
CASES = {"small": SMALL, "grey, half masked": {**SMALL, "channels": 1, "mask_ratio": 0.5}, "tiny": TINY}


@pytest.mark.parametrize("norm_pix_loss", [True, False], ids=["normalized", "plain"])
@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_prediction_loss_and_gradients_are_equal(sizes, norm_pix_loss):
    image, noise = draw_batch(sizes, batch_size=4)
    expected = run_reference(build_reference(sizes, norm_pix_loss), sizes, image, noise)
    ours = build_ours(sizes, norm_pix_loss, expected["weights"])
    differences = compare(ours, image, noise, expected)
    worst = max((n for n in differences if n.startswith("gradient")), key=differences.get)
    for name in ("prediction", "loss", worst):
        print(f"{name}: {differences[name]:.1e}")  # shown with -rP
    assert_close(differences)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [BASE, LARGE, HUGE], ids=["base", "large", "huge"])
def test_the_papers_sizes_are_equal(sizes):
    test_prediction_loss_and_gradients_are_equal(sizes, norm_pix_loss=True)


STEPS = 20
PEAK, DECAY = 1e-3, 0.05


def reference_losses(reference, sizes, image, noises):
    """Losses of torch's AdamW: tensors of one dimension are not decayed, warmup and cosine by the step."""
    import torch

    trained = [p for p in reference.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    schedule, losses = WarmupCosine(PEAK, STEPS, 5), []
    mean, std = PIXEL_MEAN[: sizes["channels"]], PIXEL_STD[: sizes["channels"]]
    pixels = torch.from_numpy(((image / np.float32(255) - mean) / std).transpose(0, 3, 1, 2).astype("float32"))
    for step, noise in enumerate(noises):
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        loss = reference(pixel_values=pixels, noise=torch.from_numpy(noise)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)], ids=["small", "base"])
def test_twenty_steps_of_adamw_give_the_losses_of_torch(sizes):
    image, _ = draw_batch(sizes, batch_size=4)
    patches = (sizes["image_size"] // sizes["patch_size"]) ** 2
    noises = np.random.default_rng(1).random((STEPS, 4, patches), dtype="float32")
    reference = build_reference(sizes, norm_pix_loss=True)
    ours = build_ours(sizes, True, run_reference(reference, sizes, image, noises[0])["weights"])
    expected = reference_losses(reference, sizes, image, noises)
    optimizer = AdamW(WarmupCosine(PEAK, STEPS, 5), weight_decay=DECAY, beta_1=0.9, beta_2=0.95)
    optimizer.build(ours.trainable_variables)
    optimizer.compile_updates()
    trainer, losses = Trainer(ours, compiled="elementwise"), []
    trainer.compile(optimizer=optimizer, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices({"image": np.stack([image] * STEPS), "noise": noises})
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    trainer.fit(batches, verbose=0, shuffle=False, callbacks=[log])
    difference = np.abs(np.array(losses) / expected - 1).max()
    print(f"losses {expected[0]:.4f} to {expected[-1]:.4f}, largest relative difference {difference:.1e}")
    assert expected[-1] < 0.9 * expected[0]
    assert difference < 1e-4
