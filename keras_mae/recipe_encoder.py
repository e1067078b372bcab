"""The encoder that a command is given, checked against the recipe that it is to be trained with."""

from keras_mae import recipes


def load_recipe_encoder(path, recipe, policy="float32", positions="resize", **changes):
    """A saved encoder at the recipe's image size.

    Args:
        path: as `load_encoder` takes it.
        recipe: whose structure the encoder must have.
        policy: Keras dtype policy.
        positions: "resize" or "recompute" the position table if the encoder's image size is not the recipe's.
        **changes: arguments of `VisionTransformer` that are not those of the saved encoder, as `load_encoder` takes
            them.

    Raises:
        ValueError: there is no such model, or its structure is not the recipe's; names field and values.
    """
    from keras_mae.models import VisionTransformer
    from keras_mae.training.saved_model import load_encoder

    changes |= {"image_size": recipe.image_size, "remat": recipe.remat}
    encoder = load_encoder(path, positions=positions, dtype=policy, **changes)
    wanted = VisionTransformer(**recipes.structure(recipe))
    differences = [
        f"{name} is {getattr(encoder, name)}, the recipe has {getattr(wanted, name)}"
        for name in recipes.structure(recipe)
        if getattr(encoder, name) != getattr(wanted, name)
    ]
    if differences:
        raise ValueError(f"The encoder at {path} does not fit: {'; '.join(differences)}. Set the flags of these names.")
    return encoder
