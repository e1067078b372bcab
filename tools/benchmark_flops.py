"""The complexity report of a recipe's masked autoencoder: parameters, FLOPs and memory, by arithmetic.

Everything is counted twice: for an encoder of visible patches only, which is the paper's point, and for one that takes
mask tokens too (Table 1c). `keras_mae.models.complexity` says what is counted; memory is an estimate.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_mae import commandline
from keras_mae.commandline import CommandError
from keras_mae.layers.remat import REMATS
from keras_mae.models.complexity import Architecture, count_parts, kept_values, state_bytes, step_flops, total
from keras_mae.pretrain import build_mae
from keras_mae.recipes import PretrainRecipe

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2}
# The two models that are counted, by name in the results
ENCODERS = {"visible": False, "mask_tokens": True}


def architecture_of(recipe: PretrainRecipe) -> Architecture:
    """The sizes of a recipe's model.

    Raises:
        CommandError: the recipe's sizes do not fit each other, or its target has a size that only its file knows.
    """
    if recipe.target != "pixels":
        raise CommandError(f"only models of pixels are counted; expected --target=pixels, received {recipe.target!r}")
    with commandline.user_mistakes():
        build_mae(recipe, "float32")  # checks the sizes; nothing is allocated before it is built
    return Architecture(**{field.name: getattr(recipe, field.name) for field in dataclasses.fields(Architecture)})


def count_flops(recipe: PretrainRecipe, precision: str) -> dict[str, Any]:
    """Counts a recipe's model.

    Args:
        recipe: whose `encoder_mask_tokens` does not matter: both models are counted.
        precision: "float32" or "bfloat16", that of the values kept.

    Returns:
        What is written as JSON; `flops_text` shows it.

    Raises:
        CommandError: the recipe's model cannot be counted.
    """
    sizes = architecture_of(recipe)
    models = {
        name: dataclasses.replace(sizes, encoder_mask_tokens=with_tokens) for name, with_tokens in ENCODERS.items()
    }
    visible, mask_tokens = models.values()
    return {
        "benchmark": "flops",
        "sizes": {**dataclasses.asdict(visible), "num_patches": visible.num_patches},
        "precision": precision,
        "parameters": {**_by_part(visible, "parameters"), "total": total(visible, "parameters")},
        "forward_flops": {
            name: {**_by_part(model, "flops"), "total": total(model, "flops")} for name, model in models.items()
        },
        "ratio": total(mask_tokens, "flops") / total(visible, "flops"),
        "step_flops": {name: {remat: step_flops(model, remat) for remat in REMATS} for name, model in models.items()},
        "estimated_memory": {
            "state_bytes": state_bytes(visible),
            "kept_bytes_per_image": {
                name: {remat: kept_values(model, remat) * BYTES_PER_VALUE[precision] for remat in REMATS}
                for name, model in models.items()
            },
        },
    }


def _by_part(model: Architecture, attribute: str) -> dict[str, dict[str, int]]:
    return {
        group: {name: getattr(part, attribute) for name, part in parts.items()}
        for group, parts in count_parts(model).items()
    }


def flops_text(results: Mapping[str, Any]) -> str:
    """The results of `count_flops` as a table for a terminal."""
    sizes, memory = results["sizes"], results["estimated_memory"]
    lines = [
        "",
        "encoder {embed_dim}/{depth}/{num_heads}, decoder {decoder_embed_dim}/{decoder_depth}/{decoder_num_heads} "
        "(width/blocks/heads), {num_patches} patches of {patch_size} pixels, {mask_ratio:.0%} removed".format(**sizes),
        "forward pass of one image; a multiply-add is 2 FLOPs; only matrix products count",
        "",
        f"{'':<28}{'parameters':>14}{'GFLOPs':>10}{'with mask tokens':>18}{'ratio':>8}",
    ]
    parameters, forward = results["parameters"], results["forward_flops"]
    for group in ("encoder", "decoder"):
        rows = {name: (parameters[group][name], *_pair(forward, group, name)) for name in parameters[group]}
        lines += [_row(f"{group} {name.replace('_', ' ')}", *row) for name, row in rows.items() if any(row)]
        lines += [_row(f"{group}, all", *(sum(column) for column in zip(*rows.values(), strict=True))), ""]
    lines.append(_row("all", parameters["total"], *(forward[name]["total"] for name in ENCODERS)))
    lines += ["", f"{'':<42}{'visible':>10}{'with mask tokens':>18}"]
    for remat in REMATS:
        step = [results["step_flops"][name][remat] / 1e9 for name in ENCODERS]
        lines.append(f"{f'GFLOPs of a training step, remat={remat}':<42}{step[0]:>10.1f}{step[1]:>18.1f}")
    for remat in REMATS:
        kept = [memory["kept_bytes_per_image"][name][remat] / 1e6 for name in ENCODERS]
        lines.append(f"{f'estimate: MB kept, remat={remat}':<42}{kept[0]:>10.1f}{kept[1]:>18.1f}")
    lines += [
        "",
        f"A step: all for one image. Kept: {results['precision']} values of one image that wait for the backward pass.",
        f"Weights, gradients and AdamW's moments come once, whatever the batch: {memory['state_bytes'] / 1e6:,.0f} MB.",
    ]
    return "\n".join(lines)


def _pair(forward: Mapping[str, Any], group: str, name: str) -> tuple[int, int]:
    return forward["visible"][group][name], forward["mask_tokens"][group][name]


def _row(text: str, parameters: int, visible: int, mask_tokens: int) -> str:
    if not visible:
        return f"{text:<28}{parameters:>14,}"
    ratio = mask_tokens / visible
    return f"{text:<28}{parameters:>14,}{visible / 1e9:>10.3f}{mask_tokens / 1e9:>18.3f}{ratio:>8.2f}"
