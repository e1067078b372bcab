"""The command's PCA against numpy.linalg on all patches at once, and what it reads, writes and refuses."""

import numpy as np
import pytest
from fixtures.commands import run_command
from fixtures.shard_sets import encode, write_shard_set

import pipeline
from keras_mae.commandline import CommandError
from keras_mae.models import VisionTransformer
from keras_mae.models.pca_file import read_pca
from keras_mae.models.pca_target import PCATarget
from tools import fit_pca, shard_images
from tools.fit_pca import principal_components
from tools.shard_images import ImageChoice, ShardImages, some_shards
from tools.streaming_moments import Moments

SAMPLES, HEIGHT, WIDTH, PATCH = 23, 8, 12, 4
VALUES = PATCH * PATCH * 3
MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)
READING = {"num_threads": 1}


def smooth_images():
    """Images whose neighbouring pixels are alike, as PCA wants them; no two are equal."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 226, (SAMPLES, 3, 4, 3))
    return (coarse.repeat(3, axis=1).repeat(3, axis=2)[:, :HEIGHT] + rng.integers(0, 30, (SAMPLES, 8, 12, 3))).astype(
        "uint8"
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shard_set(folder, [encode(image) for image in smooth_images()], shard_samples=[5, 1, 10, 7])
    return str(folder)


def arguments(shards, output, *more):
    return (
        f"--data={shards}",
        f"--output={output}",
        f"--image_size={HEIGHT},{WIDTH}",
        f"--resize_size={HEIGHT}",
        f"--patch_size={PATCH}",
        f"--pixel_mean={','.join(map(str, MEAN))}",
        f"--pixel_std={','.join(map(str, STD))}",
        "--num_threads=1",
        "--batch_size=4",
        *more,
    )


def cut(images):
    """Normalised patches by loops: rows of patches, then columns; in a patch row, column, channel."""
    rows = []
    for image in images:
        pixels = (image / 255 - np.array(MEAN)) / np.array(STD)
        for top in range(0, HEIGHT, PATCH):
            for left in range(0, WIDTH, PATCH):
                rows.append(pixels[top : top + PATCH, left : left + PATCH].reshape(-1))
    return np.array(rows)


def choice(shards, **options):
    return ImageChoice(data=shards, image_size=(HEIGHT, WIDTH), **{"resize_size": HEIGHT, **options})


def seen(shards, batch_size=4, **options):
    """All images that a choice gives, in one array."""
    images = ShardImages(choice(shards, **options), batch_size=batch_size, max_corrupt=0, reading=READING)
    return np.concatenate(list(images))


def as_set(images):
    return {image.tobytes() for image in images}


def test_command_fits_what_the_svd_of_all_patches_gives(shards, tmp_path, capsys):
    assert run_command(fit_pca, *arguments(shards, tmp_path / "pca.npz", "--num_components=10")) == 0
    pca = read_pca(tmp_path / "pca.npz")
    patches = cut(smooth_images())  # images are as large as the view: nothing is resized
    mean = patches.mean(axis=0)
    _, singular, directions = np.linalg.svd(patches - mean, full_matrices=False)
    variances = singular**2 / len(patches)
    np.testing.assert_allclose(pca.mean, mean, atol=1e-5)
    np.testing.assert_allclose(pca.explained_variance, variances[:10], rtol=1e-4)
    np.testing.assert_allclose(pca.total_variance, variances.sum(), rtol=1e-5)
    alignment = np.abs((pca.components * directions[:10]).sum(axis=1))  # up to the sign, a direction may turn
    np.testing.assert_allclose(alignment, 1, atol=1e-4)
    assert pca.source["images"] == SAMPLES
    assert pca.source["fingerprint"] == pipeline.load_manifest(shards).fingerprint(None)
    assert (pca.patch_size, pca.channels, pca.pixel_mean, pca.pixel_std) == (PATCH, 3, MEAN, STD)
    share = 100 * variances[:10].sum() / variances.sum()
    assert f"    10  {share:6.2f}%" in capsys.readouterr().out


def test_target_of_the_file_projects_held_out_patches(shards, tmp_path):
    run_command(fit_pca, *arguments(shards, tmp_path / "pca.npz", f"--num_components={VALUES}"))
    encoder = VisionTransformer((HEIGHT, WIDTH), PATCH, pixel_mean=MEAN, pixel_std=STD)
    target = PCATarget.from_file(tmp_path / "pca.npz", encoder)
    images = np.random.default_rng(3).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype="uint8")
    patches = encoder.normalized_patches(images)
    coefficients = np.asarray(target(images, patches)).reshape(-1, VALUES)
    fitted = cut(smooth_images())
    _, directions = np.linalg.eigh(np.cov(fitted.T))
    expected = (cut(images) - fitted.mean(axis=0)) @ directions[:, ::-1]
    # Signs are a choice, and the last directions' variances are too close to each other to tell them apart.
    np.testing.assert_allclose(np.abs(coefficients[:, :3]), np.abs(expected[:, :3]), atol=1e-2)
    np.testing.assert_allclose(target.to_patches(coefficients, None), cut(images), atol=1e-4)


def test_components_are_orthonormal_ordered_and_of_one_sign():
    rows = np.random.default_rng(1).standard_normal((300, 6)) * [1, 3, 2, 0.5, 5, 4]
    components, variances = principal_components(Moments.of(rows), 4)
    np.testing.assert_allclose(components @ components.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(variances, np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1][:4])
    assert np.argmax(np.abs(components), axis=1).tolist() == [4, 5, 1, 2]
    assert (components[np.arange(4), [4, 5, 1, 2]] > 0.9).all()


@pytest.mark.parametrize("view", ["eval", "pretrain"])
@pytest.mark.parametrize("batch_size", [4, 23, 64])
def test_every_image_is_seen_once(view, batch_size, shards):
    options = {"resize_size": None, "min_area": 1.0, "flip": False} if view == "pretrain" else {}
    images = seen(shards, batch_size, view=view, **options)
    assert len(images) == SAMPLES
    if view == "eval":
        assert as_set(images) == as_set(smooth_images())
    else:  # crops differ from the images, but no two crops are equal
        assert len(as_set(images)) == SAMPLES


@pytest.mark.parametrize("count", [1, 5, 6, 17, 23, 100])
def test_max_images_takes_as_many_different_ones(count, shards):
    images = seen(shards, max_images=count)
    assert len(images) == len(as_set(images)) == min(count, SAMPLES)


def test_max_images_is_chosen_by_the_seed(shards):
    choices = [frozenset(as_set(seen(shards, max_images=5, seed=seed))) for seed in range(4)]
    assert len(set(choices)) > 1
    assert frozenset(as_set(seen(shards, max_images=5, seed=3))) == choices[3]


def test_as_few_whole_shards_are_taken_as_hold_enough(shards):
    split = pipeline.load_manifest(shards).split(None)
    for seed in range(4):
        for count in range(1, SAMPLES + 1):
            part = some_shards(split, count, seed)
            sizes = [shard.samples for shard in part.shards]
            assert sum(sizes) == part.samples >= count
            assert part.samples - max(sizes) < count
            assert set(part.shards) <= set(split.shards)


def test_finished_file_is_left_alone(shards, tmp_path, capsys, monkeypatch):
    output = tmp_path / "pca.npz"
    run_command(fit_pca, *arguments(shards, output, "--num_components=3"))
    first, before = capsys.readouterr().out, output.read_bytes()
    monkeypatch.setattr(shard_images.ShardImages, "__iter__", None)  # nothing may be read
    assert run_command(fit_pca, *arguments(shards, output, "--num_components=3")) == 0
    assert capsys.readouterr().out == f"{output} is finished already\n{first}"
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "change, name", [("--num_components=4", "num_components"), ("--pixel_std=.3", "pixel_std"), ("--seed=1", "seed")]
)
def test_file_of_other_values_is_not_overwritten(change, name, shards, tmp_path, capsys):
    output = tmp_path / "pca.npz"
    run_command(fit_pca, *arguments(shards, output, "--num_components=3"))
    before = output.read_bytes()
    assert run_command(fit_pca, *arguments(shards, output, "--num_components=3", change)) == 1
    assert f"exists and was fitted with {name}=" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_same_arguments_write_the_same_bytes(shards, tmp_path):
    for name in ("a.npz", "b.npz"):
        run_command(fit_pca, *arguments(shards, tmp_path / name, "--num_components=3"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("--num_components=49", "at most 48, the numbers in a patch, received 49"),
        ("--max_images=1", "Received: 6 patches"),
        ("--patch_size=5", "multiples of the patch size"),
        ("--image_size=8,x", "--image_size takes numbers separated by commas. Received: '8,x'"),
        ("--image_size=8,12,3", "must be one side or (height, width)"),
        ("--pixel_mean=.5,.5", "pixel_mean needs 1 or channels=3 values"),
        ("--pixel_std=0", "pixel_std must be above 0"),
        ("--view=pretrain", "`resize_size` is for view 'eval'"),
        ("--split=test", "has no split 'test'"),
        ("--output=pca.txt", "must end in .npz"),
        ("--output=/no/such/folder/pca.npz", "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(change, sentence, shards, tmp_path, capsys):
    assert run_command(fit_pca, *arguments(shards, tmp_path / "pca.npz", "--num_components=10", change)) == 1
    error = capsys.readouterr().err
    *_, last = error.splitlines()  # a slow machine shows its progress before
    assert sentence in error and last.startswith("ERROR: ") and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_damaged_image_is_named_and_may_be_skipped(tmp_path, capsys):
    images = [encode(image) for image in smooth_images()]
    images[6] = images[6][:50] + b"?" * 10 + images[6][60:]  # where sharding does not look: the compressed pixels
    write_shard_set(tmp_path, images, shard_samples=[SAMPLES])
    output = tmp_path / "pca.npz"
    assert run_command(fit_pca, *arguments(tmp_path, output, "--num_components=3")) == 1
    assert "cannot be decoded" in capsys.readouterr().err
    assert not output.exists()
    assert run_command(fit_pca, *arguments(tmp_path, output, "--num_components=3", "--max_corrupt=1")) == 0
    pca, patches = read_pca(output), cut(np.delete(smooth_images(), 6, axis=0))
    assert pca.source["images"] == SAMPLES - 1
    np.testing.assert_allclose(pca.mean, patches.mean(axis=0), atol=1e-5)


def test_too_few_patches_are_refused_by_the_function_too():
    encoder = VisionTransformer((HEIGHT, WIDTH), PATCH)
    with pytest.raises(CommandError, match="Received: 6 patches"):
        fit_pca.fit_pca([smooth_images()[:1]], encoder, 6, {})
