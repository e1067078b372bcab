"""What stands behind a recipe: the command that runs it, on what, with what result, and who measured that."""

import dataclasses

SOURCES = ("published", "measured by others", "measured here", "not measured")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """A recipe's record; accuracies are top-1 in percent, on the validation split of ImageNet-1K unless said.

    Attributes:
        command: that runs the recipe; SHARDS, RUN and ENCODER stand for folders.
        hardware: what the result was found on, and the time it took where that is known.
        result: the figures to expect.
        source: who found them: one of `SOURCES`. published: by the authors of the method.
    """

    command: str
    hardware: str
    result: str
    source: str

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}. Received: {self.source!r}")
