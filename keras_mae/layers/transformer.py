"""The pre-norm Transformer block of the ViT, used by encoder and decoder."""

import keras
from keras import ops

from keras_mae.layers.attention import SelfAttention
from keras_mae.layers.dense import Dense
from keras_mae.layers.drop_path import DropPath
from keras_mae.layers.elementwise import LayerNorm, gelu


@keras.saving.register_keras_serializable(package="keras_mae")
class TransformerBlock(keras.layers.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)); exact (erf) GELU.

    Args:
        num_heads: number of attention heads.
        mlp_ratio: width of the MLP's hidden layer over the width of the tokens.
        drop_path_rate: share of the samples for which a residual branch is dropped in training; attention and MLP
            draw separately.

    Call arguments:
        x: tokens.
        drop_noise: (batch, 2) uniform numbers for the two branches, optional (see `DropPath`).
        training: whether drop path is active.
        num_outputs: only the last so many tokens come out, the others are attended to; None for all.

    Input shape:
        (batch, num_tokens, embed_dim)

    Output shape:
        The input's shape, or (batch, num_outputs, embed_dim).
    """

    def __init__(self, num_heads, mlp_ratio=4.0, drop_path_rate=0.0, **kwargs):
        # Without autocast the noise of drop path keeps its float32 digits under mixed precision.
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.drop_path_rate = drop_path_rate

    def build(self, input_shape):
        dim = input_shape[-1]
        hidden_dim = int(dim * self.mlp_ratio)
        policy = {"dtype": self.dtype_policy}
        self.norm1 = LayerNorm(name="norm1", **policy)
        self.attention = SelfAttention(self.num_heads, name="attention", **policy)
        self.norm2 = LayerNorm(name="norm2", **policy)
        self.mlp_hidden = Dense(hidden_dim, name="mlp_hidden", **policy)
        self.mlp_output = Dense(dim, name="mlp_output", **policy)
        self.drop_path = DropPath(self.drop_path_rate, name="drop_path", **policy)
        for layer in (self.norm1, self.attention, self.norm2, self.mlp_hidden):
            layer.build(input_shape)
        self.mlp_output.build((*input_shape[:-1], hidden_dim))

    def call(self, x, drop_noise=None, training=False, num_outputs=None):
        x = ops.cast(x, self.compute_dtype)
        attention_noise, mlp_noise = (None, None) if drop_noise is None else (drop_noise[:, 0], drop_noise[:, 1])
        attended = self.attention(self.norm1(x), num_queries=num_outputs)  # (B, Q, D)
        x = x if num_outputs is None else x[:, -num_outputs:]  # (B, Q, D)
        x = x + self.drop_path(attended, noise=attention_noise, training=training)
        hidden = gelu(self.mlp_hidden(self.norm2(x)))  # (B, Q, mlp_ratio * D)
        return x + self.drop_path(self.mlp_output(hidden), noise=mlp_noise, training=training)  # (B, Q, D)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "drop_path_rate": self.drop_path_rate,
        }
