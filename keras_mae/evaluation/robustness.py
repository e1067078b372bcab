"""Robustness of an ImageNet classifier (Table 13 of the paper): ImageNet-A, -R, -Sketch, -V2 and -C, and the mCE.

The classifier is the one fine-tuned on ImageNet, as it is. A and R have images of 200 classes only: the logits of these
are compared, as in the code of their authors. C has 15 corruptions of ImageNet's validation images, each in 5
severities; its images are 224x224 crops already. V2 is not in the paper; it is the same kind of question.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_mae.evaluation.class_map import ClassMap, EvaluationError


class RobustnessSet(NamedTuple):
    """One of the suite's data sets.

    Attributes:
        title: what it is called.
        restricted: whether only the classes that it has are compared.
        is_cropped: whether its images are cropped already, so that no border is cut off.
        numbered: whether its class folders may be called 0, 1, ...: the model's numbers of the classes.
    """

    title: str
    restricted: bool = False
    is_cropped: bool = False
    numbered: bool = False


CORRUPTED = "imagenet-c"
SETS = {
    "imagenet-a": RobustnessSet("ImageNet-A", restricted=True),
    "imagenet-r": RobustnessSet("ImageNet-R", restricted=True),
    "imagenet-sketch": RobustnessSet("ImageNet-Sketch"),
    "imagenet-v2": RobustnessSet("ImageNet-V2", numbered=True),
    CORRUPTED: RobustnessSet("ImageNet-C", is_cropped=True),
}

SEVERITIES = (1, 2, 3, 4, 5)

# AlexNet's top-1 error (0..1) under each corruption, the mean of the five severities: what the mCE is relative to.
# Source: D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
# (arXiv 1903.12261), Table 1, where they are rounded to percent; here with the digits of the authors' own published
# evaluation (github.com/hendrycks/robustness), on which other reports of mCE rest too.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def corruption_errors(accuracies: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Error under each corruption, relative to AlexNet's (1 is as bad as AlexNet).

    CE(c) is the sum over severities of the model's errors, divided by the same sum of AlexNet's.

    Args:
        accuracies: top-1 accuracy (0..1) by corruption and severity; corruptions with a severity missing are left out.
    """
    return {
        name: sum(1 - accuracies[name][severity] for severity in SEVERITIES) / (len(SEVERITIES) * alexnet)
        for name, alexnet in ALEXNET_ERRORS.items()
        if set(accuracies.get(name, ())) >= set(SEVERITIES)
    }


def mean_corruption_error(errors: Mapping[str, float]) -> float | None:
    """The mean of all 15 `corruption_errors`; the mCE is usually given in percent of this. None: one is missing."""
    if set(errors) != set(ALEXNET_ERRORS):
        return None
    return sum(errors.values()) / len(errors)


def match_classes(known: Sequence[str], given: Sequence[str], kind: RobustnessSet) -> ClassMap:
    """Finds the classes of a robustness set among those of the model, by name (the WordNet id, such as n01440764).

    Args:
        known: the model's classes, in its order.
        given: the set's classes, in its order.
        kind: which set.

    Raises:
        EvaluationError: the model does not know a class of the set, or two are the same.
    """
    numbers = {name: number for number, name in enumerate(known)}
    if kind.numbered and not numbers.keys() & set(given) and all(_is_number(name, len(known)) for name in given):
        numbers = {name: int(name) for name in given}
    unknown = [name for name in given if name not in numbers]
    if unknown:
        raise EvaluationError(
            f"The classifier does not know {len(unknown)} of the {len(given)} classes of {kind.title}: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}. Expected: names of its classes, such as "
            f"{known[0]}"
        )
    columns = np.array([numbers[name] for name in given], np.int64)
    if len(np.unique(columns)) != len(columns):
        raise EvaluationError(f"Two classes of {kind.title} are the same class of the classifier.")
    if not kind.restricted:
        return ClassMap(np.arange(len(known)), columns)
    return ClassMap(np.sort(columns), np.argsort(np.argsort(columns)))


def _is_number(name: str, bound: int) -> bool:
    return name.isdecimal() and int(name) < bound
