"""Counts against the published numbers, a built model, a count by hand, and PyTorch's own counters."""

import dataclasses
import math

import pytest

from keras_mae.models import MaskedAutoencoder, VisionTransformer
from keras_mae.models.complexity import (
    Architecture,
    Dense,
    count_parts,
    kept_values,
    state_bytes,
    step_flops,
    total,
)

DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}
SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
}
# 8 x 12 pixels, 6 patches of 4 x 4, of which 3 are visible
TINY = {"image_size": (8, 12), "patch_size": 4, "channels": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}
TINY_DECODER = {"decoder_embed_dim": 4, "decoder_depth": 1, "decoder_num_heads": 1}
HUGGING_FACE = {
    **{"image_size": 64, "patch_size": 8, "channels": 3, "embed_dim": 96, "depth": 3, "num_heads": 4},
    **{"decoder_embed_dim": 64, "decoder_depth": 2, "decoder_num_heads": 2},
}


def published(size, **overrides) -> Architecture:
    common = {"image_size": 224, "patch_size": 16, "channels": 3, "mask_ratio": 0.75, **DECODER}
    return Architecture(**{**common, **SIZES[size], **overrides})


def tiny(**overrides) -> Architecture:
    return Architecture(**{**TINY, **TINY_DECODER, "mask_ratio": 0.5, **overrides})


def parameters(architecture, group):
    return sum(part.parameters for part in count_parts(architecture)[group].values())


@pytest.mark.parametrize(
    "size, encoder, whole",
    [
        ("base", 85_798_656, 111_907_840),
        ("large", 303_301_632, 329_541_888),
        ("huge", 630_764_800, 657_074_508),
    ],
)
def test_parameters_are_those_of_the_published_checkpoints(size, encoder, whole):
    assert (parameters(published(size), "encoder"), total(published(size), "parameters")) == (encoder, whole)


@pytest.mark.parametrize("encoder_mask_tokens", [False, True])
def test_parameters_are_those_of_the_model_that_is_built(encoder_mask_tokens):
    model = MaskedAutoencoder(VisionTransformer(**TINY), **TINY_DECODER, encoder_mask_tokens=encoder_mask_tokens)
    model.build()
    expected = tiny(encoder_mask_tokens=encoder_mask_tokens)
    assert total(expected, "parameters") == sum(math.prod(weight.shape) for weight in model.weights)
    frozen = sum(math.prod(weight.shape) for weight in model.non_trainable_weights)
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    assert state_bytes(expected) == 4 * frozen + 16 * trained


def test_flops_are_those_counted_by_hand():
    # Tokens: 3 visible patches and the class token in the encoder, 6 and the class token in the decoder.
    encoder, decoder = ({name: part.flops for name, part in group.items()} for group in count_parts(tiny()).values())
    assert encoder == {
        "patch_embedding": 2 * 3 * 48 * 8,
        "tokens_positions": 0,
        "norms": 0,
        "qkv": 2 * 2 * 4 * 8 * 24,
        "attention": 2 * (2 * 4 * 8 * 4 + 2 * 4 * 4 * 8),
        "projection": 2 * 2 * 4 * 8 * 8,
        "mlp": 2 * (2 * 4 * 8 * 32 + 2 * 4 * 32 * 8),
        "final_norm": 0,
    }
    assert decoder == {
        "embedding": 2 * 4 * 8 * 4,
        "tokens_positions": 0,
        "norms": 0,
        "qkv": 2 * 7 * 4 * 12,
        "attention": 2 * 7 * 4 * 7 + 2 * 7 * 7 * 4,
        "projection": 2 * 7 * 4 * 4,
        "mlp": 2 * 7 * 4 * 16 + 2 * 7 * 16 * 4,
        "final_norm": 0,
        "prediction": 2 * 7 * 4 * 48,
        "loss": 0,
    }


def test_a_step_takes_both_gradients_of_every_product_but_the_pixels():
    forward = total(tiny(), "flops")
    assert step_flops(tiny()) == forward + 2 * forward - 2 * 3 * 48 * 8


def test_remat_computes_the_blocks_once_more():
    encoder, decoder = count_parts(tiny()).values()
    outside = [encoder["patch_embedding"], decoder["embedding"], decoder["prediction"]]
    blocks = total(tiny(), "flops") - sum(part.flops for part in outside)
    assert step_flops(tiny(), "blocks") == step_flops(tiny()) + blocks


@pytest.mark.parametrize("size, ratio", [("small", 1.5), ("base", 2.35), ("large", 3.3)])
def test_mask_tokens_in_the_encoder_cost_what_the_paper_says(size, ratio):
    # 3.3 is the paper's, Table 1c; the others follow from its arithmetic.
    with_tokens = total(published(size, encoder_mask_tokens=True), "flops")
    assert with_tokens / total(published(size), "flops") == pytest.approx(ratio, abs=0.06)


def test_values_kept_are_those_listed_by_hand():
    encoder, decoder = ({name: part.kept for name, part in group.items()} for group in count_parts(tiny()).values())
    assert encoder == {
        "patch_embedding": 3 * 48,
        "tokens_positions": 0,
        "norms": 2 * 2 * 4 * 8,
        "qkv": 2 * 4 * 8,
        "attention": 2 * (3 * 4 * 8 + 2 * 4 * 4),  # queries, keys, values; weights of 2 heads
        "projection": 2 * 4 * 8,
        "mlp": 2 * (4 * 8 + 2 * 4 * 32),  # input; hidden before and after GELU
        "final_norm": 4 * 8,
    }
    assert sum(decoder.values()) == 4 * 8 + (16 * 7 * 4 + 7 * 7) + 7 * 4 + 7 * 4 + 6 * 48


def test_remat_keeps_the_inputs_of_all_blocks_and_the_inside_of_the_largest():
    encoder_block, decoder_block = 16 * 4 * 8 + 2 * 4 * 4, 16 * 7 * 4 + 7 * 7
    outside = kept_values(tiny()) - 2 * encoder_block - decoder_block
    assert encoder_block > decoder_block
    assert kept_values(tiny(), "blocks") == outside + 2 * 4 * 8 + 7 * 4 + encoder_block


def test_a_dense_layer_counts_its_bias_as_parameters_only():
    assert (Dense(5, 3, 2, 7).flops, Dense(5, 3, 2, 7).parameters) == (7 * 2 * 5 * 3 * 2, 7 * (3 * 2 + 2))


@pytest.mark.parity
@pytest.mark.parametrize("mask_ratio", [0.75, 0.0], ids=["visible patches", "all patches"])
def test_flops_and_kept_values_are_those_that_pytorch_counts(mask_ratio):
    # With mask_ratio 0 its encoder has as many tokens as one with mask tokens.
    ours = Architecture(**HUGGING_FACE, mask_ratio=0.75, encoder_mask_tokens=mask_ratio == 0)
    forward, step, kept = counts_of_hugging_face(mask_ratio)
    # It embeds all patches, and throws the removed ones away afterwards.
    every = dataclasses.replace(ours, encoder_mask_tokens=True)
    embedding, full = (count_parts(a)["encoder"]["patch_embedding"].flops for a in (ours, every))
    assert forward == total(ours, "flops") + full - embedding
    assert step == step_flops(ours) + 2 * (full - embedding)
    assert 0.85 < kept_values(ours) / kept <= 1


def counts_of_hugging_face(mask_ratio):
    """FLOPs forward, FLOPs of a step and float32 values saved for the backward pass, for one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        image_size=64,
        patch_size=8,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=4 * 96,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=4 * 64,
        mask_ratio=mask_ratio,
        norm_pix_loss=True,
        attn_implementation="eager",  # matrix products that can be counted
    )
    model, saved = ViTMAEForPreTraining(config).train(), {}

    def note(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(torch.rand(2, 3, 64, 64)).loss
        forward = counter.get_total_flops()
        loss.backward()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = sum(size for place, size in saved.items() if place not in weights)
    return forward / 2, counter.get_total_flops() / 2, kept / 4 / 2
