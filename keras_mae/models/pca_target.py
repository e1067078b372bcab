"""Target of pre-training: the first coefficients of a PCA of the patches (Table 1d: 96 of them, ViT-L 84.6/72.3).

The paper says no more than "PCA in the patch space". Here the coefficients are plain projections, not divided by their
deviations, so that the squared error is the pixels' own, without what the left-out components hold: with all components
it equals the loss of plain pixels.
"""

import keras
import numpy as np
from keras import ops

from keras_mae.models.pca_file import read_pca
from keras_mae.models.targets import mean_squared_errors


@keras.saving.register_keras_serializable(package="keras_mae")
class PCATarget(keras.layers.Layer):
    """Coefficients of each patch in an orthonormal basis that was fitted before (`tools.fit_pca`).

    Always float32; nothing is trained.

    Args:
        mean: (values,) floats, of all patches; values = patch_size * patch_size * channels.
        components: (num_values, values) floats, orthonormal rows; the first coefficients of a PCA.

    Call arguments:
        images: not used.
        patches: normalised pixels, as `VisionTransformer.normalized_patches` makes them.

    Input shape:
        (batch, height, width, channels) and (batch, num_patches, values)

    Output shape:
        (batch, num_patches, num_values)

    Raises:
        ValueError: shapes that do not fit each other, or rows that are not orthonormal.
    """

    def __init__(self, mean, components, **kwargs):
        # Without autocast the pixels keep their float32 digits under mixed precision.
        super().__init__(autocast=False, **kwargs)
        self.mean = np.asarray(mean, "float32")
        self.components = np.asarray(components, "float32")
        if self.components.ndim != 2 or self.mean.shape != self.components.shape[1:]:
            raise ValueError(
                "Expected a mean of shape (values,) and components of shape (num_values, values). "
                f"Received: {self.mean.shape} and {self.components.shape}"
            )
        worst = np.abs(self.components @ self.components.T - np.eye(len(self.components))).max()
        if not worst < 1e-3:
            raise ValueError(
                "The components must be orthonormal rows: dot products of 1 with themselves and 0 with each other. "
                f"Received: components that are off by {worst:.3g}"
            )
        self.num_values = len(self.components)

    @classmethod
    def from_file(cls, path, encoder):
        """The target that `tools.fit_pca` fitted.

        Args:
            path: its .npz file.
            encoder: the `VisionTransformer` of the model; the file must be made for patches like its own.

        Raises:
            ValueError: the file is no PCA, or one of other patches or another normalisation.
            OSError: the file cannot be read.
        """
        pca = read_pca(path)
        for name in ("patch_size", "channels", "pixel_mean", "pixel_std"):
            fitted, wanted = getattr(pca, name), getattr(encoder, name)
            if np.shape(fitted) != np.shape(wanted) or not np.allclose(fitted, wanted, rtol=0, atol=1e-6):
                raise ValueError(
                    f"{path} was fitted with {name}={fitted}, but the model has {name}={wanted}; fit it again "
                    "with tools.fit_pca and the model's values"
                )
        return cls(pca.mean, pca.components)

    def call(self, images, patches):
        self._check_values(patches, len(self.mean), "patches of pixels")
        return ops.matmul(patches - self.mean, self.components.T)  # (B, N, num_values)

    def patch_losses(self, prediction, target):
        """Mean squared error over the coefficients of each patch: (batch, num_patches)."""
        return mean_squared_errors(prediction, target)

    def to_patches(self, prediction, patches):
        """Predicted coefficients as normalised pixels, for figures.

        Args:
            prediction: (batch, num_patches, num_values) float32.
            patches: of the original; not used, nothing is taken from it.

        Returns:
            (batch, num_patches, values) float32.
        """
        self._check_values(prediction, self.num_values, "coefficients")
        return ops.matmul(prediction, self.components) + self.mean  # (B, N, P*P*C)

    def _check_values(self, tokens, expected, what):
        if tokens.shape[-1] != expected:
            raise ValueError(f"Expected {what} of {expected} values each. Received: {tokens.shape[-1]}")

    def compute_output_shape(self, images_shape, patches_shape):
        return (*patches_shape[:-1], self.num_values)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean.tolist(), "components": self.components.tolist()}
