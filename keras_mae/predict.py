"""Says what a fine-tuned classifier sees in images: the likeliest classes and their probabilities.

python -m keras_mae.predict --model=runs/base-finetuned IMAGE.jpg FOLDER ...

Of a folder all images below it are taken, sorted by path. An image that cannot be read is named, the others go on, and
the exit code is 1 in the end. `--json` prints a line of JSON an image instead of the table.
"""

import contextlib
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import flags

from keras_mae import commandline
from keras_mae.run_flags import define_precision_flag
from pipeline.host_decode import DecodeError
from pipeline.processors import available_processors
from pipeline.sources.folder import ARRAY_SUFFIXES, IMAGE_SUFFIXES

FLAGS = flags.FLAGS


class Prediction(NamedTuple):
    """What is said of an image: its likeliest classes, (number, probability), or what is wrong with it."""

    file: str
    best: list[tuple[int, float]]
    error: str | None = None


def find_images(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files among `paths`, and the images below the folders among them: pictures, or arrays where there are none.

    Raises:
        ValueError: a path does not exist, or a folder has no image.
    """
    if not paths:
        raise ValueError("Name images, or folders of images: python -m keras_mae.predict --model=PATH IMAGE ...")
    found = []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"There is no file {path}.")
        found += _images_below(path) if path.is_dir() else [path]
    return found


def _images_below(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    for suffixes in (IMAGE_SUFFIXES, ARRAY_SUFFIXES):
        if found := [file for file in files if file.suffix.lower() in suffixes]:
            return found
    raise ValueError(f"{folder} has no images: expected files ending in {', '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}.")


def first_kind(files):
    """What the first readable file is an array of; None for a picture."""
    from keras_mae.loose_images import array_kind

    for file in files:
        with contextlib.suppress(ValueError, OSError):
            return array_kind(file.read_bytes())
    return None


def class_names(model_path, names_path, num_classes):
    """The names of the classes: of a text file with a name a line, else those beside the model, else their numbers.

    Raises:
        ValueError: they are of another number.
    """
    from keras_mae.training.class_names import read_class_names

    if names_path is not None:
        names = pathlib.Path(names_path).read_text().splitlines()
    else:
        names = read_class_names(model_path)
    if names is None:
        print("NOTE: the model has no classes.json: classes are numbers; --classes=FILE names them.", file=sys.stderr)
        return [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(f"The model knows {num_classes} classes. Received: {len(names)} names")
    return names


def read_batches(files: Sequence[pathlib.Path], view, image_shape, dtype, batch_size: int) -> Iterator[list]:
    """For each batch of files its pixels (height, width, channels), or, where it cannot be decoded, what is wrong."""

    def read(file):
        pixels = np.empty(image_shape, dtype)
        try:
            view(file.read_bytes(), None, pixels)
        except (DecodeError, OSError) as error:
            return getattr(error, "strerror", None) or str(error)
        return pixels

    with ThreadPoolExecutor(available_processors()) as threads:
        pending = iter(files)
        while batch := list(itertools.islice(pending, batch_size)):
            yield list(threads.map(read, batch))


def predict(classifier, files, batches, count) -> Iterator[Prediction]:
    """The `count` likeliest classes of each file, in order.

    Args:
        classifier: a `Classifier`.
        files: their paths.
        batches: of `read_batches`.
        count: of classes.
    """
    from keras import ops

    names = iter(files)
    for batch in batches:
        images = [pixels for pixels in batch if not isinstance(pixels, str)]
        if images:
            logits = ops.convert_to_tensor(classifier.predict_on_batch(np.stack(images)))
            probabilities, classes = map(np.asarray, ops.top_k(ops.softmax(logits), count))
            rows = iter(zip(classes.tolist(), probabilities.tolist(), strict=True))
        for pixels in batch:
            if isinstance(pixels, str):
                yield Prediction(str(next(names)), [], pixels)
            else:
                yield Prediction(str(next(names)), list(zip(*next(rows), strict=True)))


def as_json(prediction, names):
    """A line of JSON."""
    if prediction.error is not None:
        return json.dumps({"file": prediction.file, "error": prediction.error})
    best = [{"class": names[number], "label": number, "probability": p} for number, p in prediction.best]
    return json.dumps({"file": prediction.file, "best": best})


def as_text(prediction, names):
    """A line for the image, and one for each class."""
    lines = [f"  {100 * p:6.2f}%  {names[number]}" for number, p in prediction.best]
    return "\n".join([prediction.file, *lines])


def main(argv):
    from keras_mae.loose_images import view_of
    from keras_mae.training.run_dir import description_above
    from keras_mae.training.saved_model import load_classifier
    from keras_mae.training.strategy import dtype_policy
    from pipeline.host_engine import make_view

    with commandline.user_mistakes():
        path = pathlib.Path(FLAGS.model)
        policy = dtype_policy(FLAGS.precision)
        files = find_images(argv[1:])
        classifier = load_classifier(path, policy.name)
        names = class_names(path, FLAGS.classes, classifier.num_classes)
        description = description_above(path)
        resize_size = FLAGS.resize_size or (description["recipe"]["resize_size"] if description else None)
        view = view_of(classifier.encoder, first_kind(files), resize_size)
    broken = 0
    batches = read_batches(files, make_view(view), view.image_shape, view.dtype, FLAGS.batch_size)
    for prediction in predict(classifier, files, batches, min(FLAGS.top, len(names))):
        if prediction.error is not None:
            broken += 1
            print(f"{prediction.file} cannot be read: {prediction.error}", file=sys.stderr)
        if FLAGS.json:
            print(as_json(prediction, names))
        elif prediction.error is None:
            print(as_text(prediction, names))
    if broken:
        print(f"ERROR: {broken} of {len(files)} images cannot be read.", file=sys.stderr)
    return 1 if broken else 0


def define_flags():
    flags.DEFINE_string("model", None, "Classifier: run, export or SavedModel folder, or .keras file.", required=True)
    flags.DEFINE_integer("top", 5, "Classes to name of each image.", lower_bound=1)
    flags.DEFINE_boolean("json", False, "Print a line of JSON an image.")
    flags.DEFINE_string("classes", None, "Text file with the classes' names, a line each; unset: those of the model.")
    flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1)
    flags.DEFINE_integer("resize_size", None, "Short side before the centre crop; unset: the run's, or 256/224 rule.")
    define_precision_flag()


def entry_point():
    commandline.run(main, define_flags, takes_words=True)


if __name__ == "__main__":
    entry_point()
