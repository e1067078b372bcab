"""Weights of others in and out, from files made here by the official code's names, against a ViT in NumPy."""

import dataclasses
import json
import math

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode
from safetensors.numpy import load_file, save_file

from keras_mae.layers.position_resize import resize_position_table
from keras_mae.layers.positions import sincos_position_table
from keras_mae.training.foreign_weights import read_hints
from keras_mae.training.weight_names import NAMINGS, OFFICIAL, find_naming, name_map, to_ours
from tools import convert_weights

DIM, HEADS, PATCH, SIDE, DEPTH = 16, 2, 4, 12, 2
DECODER_DIM, DECODER_DEPTH, CLASSES = 8, 1, 5
PIXELS = ("--pixel_mean=.5", "--pixel_std=.25")


def block_shapes(prefix, dim):
    """Of a block of the official code, as PyTorch lays them out."""
    return {
        **{f"{prefix}{norm}.{w}": (dim,) for norm in ("norm1", "norm2") for w in ("weight", "bias")},
        **{f"{prefix}attn.qkv.weight": (3 * dim, dim), f"{prefix}attn.qkv.bias": (3 * dim,)},
        **{f"{prefix}attn.proj.weight": (dim, dim), f"{prefix}attn.proj.bias": (dim,)},
        **{f"{prefix}mlp.fc1.weight": (4 * dim, dim), f"{prefix}mlp.fc1.bias": (4 * dim,)},
        **{f"{prefix}mlp.fc2.weight": (dim, 4 * dim), f"{prefix}mlp.fc2.bias": (dim,)},
    }


def official_arrays(kind):
    """Random weights of a tiny model by the official names."""
    patches = (SIDE // PATCH) ** 2
    shapes = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, patches + 1, DIM),
        "patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (DIM,),
    }
    for i in range(DEPTH):
        shapes |= block_shapes(f"blocks.{i}.", DIM)
    norm = "fc_norm" if kind == "classifier" else "norm"
    shapes |= {f"{norm}.weight": (DIM,), f"{norm}.bias": (DIM,)}
    if kind == "classifier":
        shapes |= {"head.weight": (CLASSES, DIM), "head.bias": (CLASSES,)}
    if kind == "mae":
        shapes |= {"mask_token": (1, 1, DECODER_DIM), "decoder_pos_embed": (1, patches + 1, DECODER_DIM)}
        shapes |= {"decoder_embed.weight": (DECODER_DIM, DIM), "decoder_embed.bias": (DECODER_DIM,)}
        for i in range(DECODER_DEPTH):
            shapes |= block_shapes(f"decoder_blocks.{i}.", DECODER_DIM)
        shapes |= {"decoder_norm.weight": (DECODER_DIM,), "decoder_norm.bias": (DECODER_DIM,)}
        values = 3 * PATCH**2
        shapes |= {"decoder_pred.weight": (values, DECODER_DIM), "decoder_pred.bias": (values,)}
    generator = np.random.default_rng(0)
    return {name: (0.3 * generator.standard_normal(shape)).astype("float32") for name, shape in shapes.items()}


def layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def numpy_tokens(arrays, image):
    """Tokens before the last norm, of one image (H, W, C) and weights as PyTorch lays them out."""
    w = {name: array.astype("float64") for name, array in arrays.items()}
    pixels = (image / 255 - 0.5) / 0.25
    x = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for number, (row, column) in enumerate(np.ndindex(SIDE // PATCH, SIDE // PATCH)):
        patch = pixels[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        token = np.einsum("hwc,dchw->d", patch, w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"]
        x.append(token + w["pos_embed"][0, 1 + number])
    x = np.stack(x)
    for i in range(DEPTH):
        b = {name.removeprefix(f"blocks.{i}."): array for name, array in w.items() if name.startswith(f"blocks.{i}.")}
        qkv = layer_norm(x, b["norm1.weight"], b["norm1.bias"]) @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
        heads = []
        for q, k, v in zip(*(np.split(part, HEADS, axis=1) for part in np.split(qkv, 3, axis=1)), strict=True):
            scores = np.exp(q @ k.T / math.sqrt(DIM // HEADS))
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(heads, axis=1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        hidden = layer_norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
        x = x + hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return x


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype="uint8")


def convert(source, output, *flags):
    return run_command(convert_weights, f"--input={source}", f"--output={output}", *flags)


def convert_arrays(arrays, folder, *flags):
    """Exit code of converting them to FOLDER/out."""
    folder.mkdir(exist_ok=True)
    save_file(arrays, folder / "weights.safetensors")
    return convert(folder / "weights.safetensors", folder / "out", *flags)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """{kind: folder of our model}, from official names."""
    folders = {}
    for kind in ("encoder", "mae", "classifier"):
        folder = tmp_path_factory.mktemp("converted") / kind
        heads = ("--decoder_num_heads=2",) if kind == "mae" else ()
        flags = (f"--num_heads={HEADS}", *heads, *PIXELS, "--source_license=CC BY-NC 4.0")
        assert convert_arrays(official_arrays(kind), folder, *flags) == 0
        folders[kind] = folder / "out"
    return folders


def assert_same(arrays, expected):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


FILES = {
    "encoder": {"encoder.keras"},
    "mae": {"encoder.keras", "mae.keras"},
    "classifier": {"classifier.keras"},
}


@pytest.mark.parametrize("kind", FILES)
def test_the_folder_is_that_of_an_export_with_a_card(converted, kind):
    folder = converted[kind]
    assert {p.name for p in folder.iterdir()} == FILES[kind] | {"saved_model", "card.json", "README.md"}
    assert list(folder.parent.glob("*.partial")) == []
    card = json.loads((folder / "card.json").read_text())
    assert (card["source"], card["source_license"], card["source_names"]) == (
        "weights.safetensors",
        "CC BY-NC 4.0",
        "official",
    )
    assert "source_license: CC BY-NC 4.0" in (folder / "README.md").read_text()
    assert json.loads((folder / "saved_model" / "assets.extra" / "card.json").read_text()) == card


def test_an_encoder_computes_what_its_weights_say(converted, image):
    from keras_mae.training.saved_model import load_encoder

    arrays = official_arrays("encoder")
    expected = layer_norm(numpy_tokens(arrays, image), arrays["norm.weight"], arrays["norm.bias"])
    for form in ("", "saved_model"):
        encoder = load_encoder(converted["encoder"] / form)
        assert (encoder.num_heads, encoder.image_size, encoder.mlp_ratio) == (HEADS, (SIDE, SIDE), 4.0)
        np.testing.assert_allclose(encoder(image[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_computes_what_its_weights_say(converted, image):
    from keras_mae.training.saved_model import load_model

    arrays = official_arrays("classifier")
    pooled = layer_norm(numpy_tokens(arrays, image)[1:].mean(0), arrays["fc_norm.weight"], arrays["fc_norm.bias"])
    expected = pooled @ arrays["head.weight"].T + arrays["head.bias"]
    model = load_model(converted["classifier"])
    np.testing.assert_allclose(model(image[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_an_autoencoder_has_the_sizes_of_its_weights(converted):
    from keras_mae.training.saved_model import load_encoder, load_model

    model = load_model(converted["mae"] / "mae.keras")
    sizes = (model.decoder_embed_dim, model.decoder_depth, model.decoder_num_heads, model.mask_ratio)
    assert sizes == (DECODER_DIM, DECODER_DEPTH, 2, 0.75) and model.norm_pix_loss
    arrays = official_arrays("mae")
    np.testing.assert_array_equal(model.decoder.embedding.kernel, arrays["decoder_embed.weight"].T)
    np.testing.assert_array_equal(model.decoder.position_embedding.table, arrays["decoder_pos_embed"][0])
    encoder = load_encoder(converted["mae"])  # the folder stands for its encoder
    np.testing.assert_array_equal(encoder.class_token, arrays["cls_token"])


@pytest.mark.parametrize("kind, target", [("encoder", "timm"), ("mae", "official"), ("classifier", "timm")])
def test_there_and_back_gives_the_same_file(converted, tmp_path, kind, target):
    arrays = official_arrays(kind)
    assert convert(converted[kind], tmp_path / "theirs", f"--to={target}") == 0
    assert_same(load_file(tmp_path / "theirs" / "model.safetensors"), arrays)


@pytest.mark.parametrize("kind", ["encoder", "mae"])
def test_hugging_face_and_back_needs_no_flags_and_keeps_the_licence(converted, tmp_path, kind):
    assert convert(converted[kind], tmp_path / "theirs", "--to=huggingface") == 0
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert (config["num_attention_heads"], config["layer_norm_eps"]) == (HEADS, 1e-6)
    assert convert(tmp_path / "theirs", tmp_path / "again", "--to=official") == 0
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), official_arrays(kind))
    hints = read_hints(tmp_path / "again" / "model.safetensors")
    assert (hints["num_heads"], hints["image_size"], hints["pixel_std"]) == (HEADS, (SIDE, SIDE), (0.25,) * 3)
    card = json.loads((tmp_path / "again" / "card.json").read_text())
    assert (card["source_license"], card["began_with"]["began_with"]["source"]) == (
        "CC BY-NC 4.0",
        "weights.safetensors",
    )


def test_timm_takes_the_encoder_of_an_autoencoder(converted, tmp_path, capsys):
    assert convert(converted["mae"], tmp_path / "theirs", "--to=timm") == 0
    assert "only the encoder is written" in capsys.readouterr().err
    assert set(load_file(tmp_path / "theirs" / "model.safetensors")) == set(official_arrays("encoder"))


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: naming.name)
def test_every_naming_is_recognised_and_read_alike(naming):
    kind = "encoder" if "encoder alone" in naming.name else "mae"
    official = to_ours(official_arrays(kind), name_map(OFFICIAL, kind, DEPTH, DECODER_DEPTH))
    names = name_map(naming, kind, DEPTH, DECODER_DEPTH)
    # Their layout by hand: query, key and value are the thirds of the official rows.
    arrays = {}
    for ours, official_name in name_map(OFFICIAL, kind, DEPTH, DECODER_DEPTH).items():
        array = official_arrays(kind)[official_name[0]]
        third = len(array) // len(names[ours])
        arrays |= {name: array[i * third : (i + 1) * third] for i, name in enumerate(names[ours])}
    found, found_kind = find_naming(arrays)
    assert (found.name, found_kind) == (naming.name, kind)
    for name, array in to_ours(arrays, names).items():
        np.testing.assert_array_equal(array, official[name], err_msg=name)


def test_the_names_of_the_known_sizes_are_as_many_as_published():
    # Base, large, huge: encoder alone, and with a decoder of 8 blocks.
    counts = {12: (150, 254), 24: (294, 398), 32: (390, 494)}
    for depth, (encoder, mae) in counts.items():
        assert len(name_map(OFFICIAL, "encoder", depth)) == encoder
        assert len(name_map(OFFICIAL, "mae", depth, 8)) == mae


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


def linear_probe(arrays):
    return {**without(without(official_arrays("classifier"), "fc_norm.weight"), "fc_norm.bias"), **arrays}


HEADS_FLAG = ("--num_heads=2",)
REFUSED = {
    "missing": (lambda a: without(a, "blocks.1.attn.qkv.bias"), HEADS_FLAG, "missing: 'blocks.1.attn.qkv.bias'"),
    "left over": (lambda a: {**a, "pooler.bias": np.ones(3, "f")}, HEADS_FLAG, "left over: 'pooler.bias'"),
    "a head on the class token": (linear_probe, HEADS_FLAG, "left over: 'head.bias', 'head.weight'"),
    "shape": (
        lambda a: {**a, "blocks.0.mlp.fc2.weight": np.ones((DIM, 60), "f")},
        HEADS_FLAG,
        "blocks.0.mlp.fc2.weight: expected (16, 64), received (16, 60)",
    ),
    "axes": (lambda a: {**a, "pos_embed": np.ones((10, DIM), "f")}, HEADS_FLAG, "pos_embed must have 3 axes"),
    "heads unknown": (lambda a: a, (), "number of attention heads of width 16: give --num_heads=NUMBER"),
    "heads do not fit": (lambda a: a, ("--num_heads=3",), "multiple of the number of heads"),
    "not square": (
        lambda a: {**a, "pos_embed": np.ones((1, 9, DIM), "f")},
        HEADS_FLAG,
        "8 patches is not of a square image: give --image_size=HEIGHT,WIDTH",
    ),
    "image size": (lambda a: a, (*HEADS_FLAG, "--image_size=16"), "position table of 9 patches of 4 pixels"),
    "patches": (
        lambda a: {**a, "patch_embed.proj.weight": np.ones((DIM, 3, 4, 2), "f")},
        HEADS_FLAG,
        "Patches must be square",
    ),
    "other names": (lambda a: {"encoder.weight": np.ones(3, "f")}, HEADS_FLAG, "Received: 'encoder.weight'"),
    "flags of a decoder": (lambda a: a, (*HEADS_FLAG, "--mask_ratio=.5"), "holds no decoder: leave out mask_ratio"),
    "no numbers": (lambda a: a, ("--pixel_mean=a",), "pixel_mean takes numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(tmp_path, capsys, name):
    change, flags, sentence = REFUSED[name]
    assert convert_arrays(change(official_arrays("encoder")), tmp_path, *flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("ERROR: ") and sentence in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.safetensors"]


def test_the_decoder_needs_its_heads(tmp_path, capsys):
    assert convert_arrays(official_arrays("mae"), tmp_path, *HEADS_FLAG) == 1
    assert "of width 8: give --decoder_num_heads=NUMBER" in capsys.readouterr().err


def test_files_that_are_none_are_refused(tmp_path, capsys, converted, monkeypatch):
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    cases = {
        tmp_path / "missing.pth": "There is no file",
        tmp_path / "missing": "There is no model at",
        tmp_path / "broken.safetensors": "cannot be read as safetensors",
    }
    for path, sentence in cases.items():
        assert convert(path, tmp_path / "out") == 1
        assert sentence in capsys.readouterr().err
    assert convert(converted["encoder"], tmp_path / "out", "--num_heads=2") == 1
    assert "knows its num_heads: leave out" in capsys.readouterr().err
    assert convert(converted["classifier"], tmp_path / "out", "--to=huggingface") == 1
    assert "--to=timm" in capsys.readouterr().err
    assert convert(converted["encoder"], tmp_path) == 1
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"")
    assert convert(tmp_path / "weights.pth", tmp_path / "out") == 1
    assert "weights.pth needs PyTorch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_half_precision_is_read_and_a_frozen_table_is_no_news(tmp_path, capsys):
    import ml_dtypes

    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in official_arrays("encoder").items()}
    arrays["pos_embed"] = sincos_position_table((3, 3), DIM)[None]
    assert convert_arrays(arrays, tmp_path, *HEADS_FLAG, "--to=timm") == 0
    notes = capsys.readouterr().err
    assert "sin-cos" not in notes and "the licence of the source is not known" in notes
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(written, {name: array.astype("float32") for name, array in arrays.items()})


def test_a_trained_table_is_kept_and_said(tmp_path, capsys):
    flags = (*HEADS_FLAG, "--to=timm", "--source_license=MIT")
    assert convert_arrays(official_arrays("encoder"), tmp_path, *flags) == 0
    notes = capsys.readouterr().err
    assert "the position table is not the sin-cos table" in notes and "licence" not in notes


def build_mae(image_size=SIDE, num_heads=HEADS):
    from keras_mae.models import MaskedAutoencoder, VisionTransformer

    encoder = VisionTransformer(image_size, PATCH, 3, DIM, DEPTH, num_heads)
    return MaskedAutoencoder(encoder, DECODER_DIM, DECODER_DEPTH, 2)


@pytest.mark.parametrize("form", ["out", "run", "weights.safetensors", "ours.safetensors"])
def test_initial_weights_fill_encoder_and_decoder(converted, form):
    from keras_mae.training.checkpoints import Checkpoints
    from keras_mae.training.initial_weights import load_initial_weights
    from keras_mae.training.saved_model import load_model, named_weights

    folder = converted["mae"].parent
    expected = {name: np.asarray(v) for name, v in named_weights(load_model(folder / "out/mae.keras")).items()}
    if form == "ours.safetensors":
        save_file(expected, folder / form)
    if form == "run":
        trained = build_mae()
        load_initial_weights(trained, folder / "out")
        Checkpoints(folder / "run" / "checkpoints").save(3, trained.weights, {})
        recipe = {"image_size": SIDE, "patch_size": PATCH, "num_heads": HEADS, "decoder_num_heads": 2}
        (folder / "run" / "recipe.json").write_text(json.dumps({"command": "pretrain", "recipe": recipe}))
    model = build_mae()
    load_initial_weights(model, folder / form)
    for name, variable in named_weights(model).items():
        np.testing.assert_array_equal(variable, expected[name], err_msg=name)


def test_initial_weights_of_another_image_size(converted):
    from keras_mae.training.initial_weights import load_initial_weights

    arrays = official_arrays("mae")
    for positions in ("resize", "recompute"):
        model = build_mae(image_size=(16, 8))
        load_initial_weights(model, converted["mae"], positions)
        for name, part, dim in (("pos_embed", model.encoder, DIM), ("decoder_pos_embed", model.decoder, DECODER_DIM)):
            resized = resize_position_table(arrays[name][0], (3, 3), (4, 2))
            expected = resized if positions == "resize" else sincos_position_table((4, 2), dim)
            np.testing.assert_array_equal(part.position_embedding.table, expected)


def test_initial_weights_that_do_not_fit_are_refused(converted, tmp_path):
    from keras_mae.training.initial_weights import load_initial_weights

    with pytest.raises(ValueError, match="num_heads is 2, the model has 4"):
        load_initial_weights(build_mae(num_heads=4), converted["mae"])
    with pytest.raises(ValueError, match="no masked autoencoder but a VisionTransformer"):
        load_initial_weights(build_mae(), converted["encoder"])
    with pytest.raises(ValueError, match="there is no decoder in it"):
        load_initial_weights(build_mae(), converted["encoder"].parent / "weights.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="convert it with tools.convert_weights"):
        load_initial_weights(build_mae(), tmp_path / "weights.pth")


@pytest.mark.parametrize("positions", ["resize", "recompute"])
def test_fine_tuning_opens_an_encoder_at_another_image_size(converted, image, positions):
    from keras_mae.finetune import open_encoder
    from keras_mae.recipes import FINETUNE_RECIPES

    sizes = {"patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    pixels = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.25,) * 3}
    recipe = dataclasses.replace(FINETUNE_RECIPES["vit_tiny"], **sizes, **pixels, image_size=(16, 20))
    encoder = open_encoder(converted["encoder"], recipe, positions=positions)
    arrays = official_arrays("encoder")
    resized = resize_position_table(arrays["pos_embed"][0], (3, 3), (4, 5))
    expected = resized if positions == "resize" else sincos_position_table((4, 5), DIM)
    np.testing.assert_array_equal(encoder.position_embedding.table, expected)
    np.testing.assert_array_equal(encoder.class_token, arrays["cls_token"])
    assert encoder(np.zeros((1, 16, 20, 3), "uint8")).shape == (1, 21, DIM)


@pytest.mark.slow
def test_fine_tuning_at_another_image_size_hands_the_licence_on(converted, tmp_path):
    from keras_mae import finetune
    from keras_mae.training.saved_model import load_model
    from pipeline.sources import FolderSource
    from tools.shard_plan import ShardOptions
    from tools.sharding import make_shards

    for number in range(8):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(np.full((16, 16, 3), 20 * number, "uint8")))
    make_shards(FolderSource(str(tmp_path / "images")), tmp_path / "shards", ShardOptions(), workers=1, log=str)
    sizes = ("--image_size=16,20", f"--patch_size={PATCH}", f"--embed_dim={DIM}", f"--depth={DEPTH}")
    flags = (*sizes, f"--num_heads={HEADS}", *PIXELS, "--recipe=vit_tiny", "--batch_size=4", "--steps=1")
    data = (f"--data={tmp_path / 'shards'}", f"--run_dir={tmp_path / 'run'}", "--deterministic=false")
    rest = (f"--encoder={converted['encoder']}", "--base_learning_rate=1e-9", "--resize_size=20")
    assert run_command(finetune, *flags, *data, *rest) == 0
    expected = resize_position_table(official_arrays("encoder")["pos_embed"][0], (3, 3), (4, 5))
    np.testing.assert_allclose(load_model(tmp_path / "run").encoder.position_embedding.table, expected, atol=1e-6)
    card = json.loads((tmp_path / "run" / "export" / "card.json").read_text())
    assert card["source_license"] == "CC BY-NC 4.0" and card["began_with"]["source"] == "weights.safetensors"
