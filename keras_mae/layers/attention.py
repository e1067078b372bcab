"""Multi-head self-attention of the ViT, with one matrix for queries, keys and values."""

import keras
from keras import ops

from keras_mae.layers.dense import Dense
from keras_mae.layers.elementwise import softmax


def check_heads(embed_dim, num_heads):
    """Raises ValueError unless `num_heads` divides `embed_dim`."""
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            "The width of the tokens must be a multiple of the number of heads. "
            f"Received: width={embed_dim}, num_heads={num_heads}"
        )


@keras.saving.register_keras_serializable(package="keras_mae")
class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention.

    Queries, keys and values come from one dense layer (columns q|k|v, then heads): the fan of Xavier's
    initialisation is then (D, 3D), as in the reference; three separate matrices would start 1.4 times larger.

    Args:
        num_heads: number of heads; divides the width of the tokens.

    Call arguments:
        x: tokens.
        num_queries: only the last so many tokens ask; None for all. All of them answer.

    Input shape:
        (batch, num_tokens, embed_dim)

    Output shape:
        The input's shape, or (batch, num_queries, embed_dim).

    Raises:
        ValueError: at build, if `num_heads` does not divide the width.
    """

    def __init__(self, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape):
        dim = input_shape[-1]
        check_heads(dim, self.num_heads)
        self.head_dim = dim // self.num_heads
        self.qkv = Dense(3 * dim, dtype=self.dtype_policy, name="qkv")
        self.qkv.build(input_shape)
        self.projection = Dense(dim, dtype=self.dtype_policy, name="projection")
        self.projection.build(input_shape)

    def call(self, x, num_queries=None):
        dim = x.shape[-1]
        if num_queries is None:
            query, key, value = self._heads(self.qkv(x), 3)  # (B, K, L, d)
        else:
            (query,) = self._heads(self.qkv(x[:, -num_queries:], columns=slice(dim)), 1)  # (B, K, Q, d)
            key, value = self._heads(self.qkv(x, columns=slice(dim, None)), 2)  # (B, K, L, d)
        scores = ops.matmul(query * self.head_dim**-0.5, ops.transpose(key, (0, 1, 3, 2)))  # (B, K, Q, L)
        x = ops.transpose(ops.matmul(softmax(scores), value), (0, 2, 1, 3))  # (B, Q, K, d)
        return self.projection(ops.reshape(x, (-1, x.shape[1], dim)))  # (B, Q, D)

    def _heads(self, x, count):
        """`count` tensors (batch, num_heads, num_tokens, head_dim) from their columns, one after the other."""
        x = ops.reshape(x, (-1, x.shape[1], count, self.num_heads, self.head_dim))  # (B, L, count, K, d)
        return ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)), count)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads}
