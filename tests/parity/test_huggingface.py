"""Our masked autoencoder against Hugging Face's ViTMAE, both run with the same random weights and noise."""

import pytest
from fixtures.mae_comparison import assert_close, build_ours, compare
from fixtures.make_mae_reference import build_reference, draw_batch, run_reference

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
