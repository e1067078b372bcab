"""The masked autoencoder's decoder (Section 3, "MAE decoder"; Table 1a and 1b for its depth and width)."""

import keras
from keras import ops

from keras_mae.layers.attention import check_heads
from keras_mae.layers.dense import Dense
from keras_mae.layers.elementwise import LayerNorm
from keras_mae.layers.masking import gather_tokens
from keras_mae.layers.positions import PositionEmbedding
from keras_mae.layers.remat import check_remat, run_blocks
from keras_mae.layers.transformer import TransformerBlock


@keras.saving.register_keras_serializable(package="keras_mae")
class Decoder(keras.layers.Layer):
    """Light Transformer over visible tokens and mask tokens; used in pre-training only.

    Args:
        grid_size: (rows, columns) of the patch grid.
        patch_values: numbers to predict for each patch.
        embed_dim: width of the decoder's tokens.
        depth: number of blocks.
        num_heads: attention heads of each block.
        mask_tokens: whether mask tokens stand for the patches that the latent lacks. False for an encoder that
            outputs a token for every patch (Table 1c): the decoder then takes them in the order of the patches.
        remat: "none" or "blocks", as in `VisionTransformer`.

    Call arguments:
        latent: encoder's tokens, class token first.
        ids_restore: where each patch stands in the sequence [visible, removed]; only with `mask_tokens`.
        removed_only: predict removed patches only, and 0 for visible ones, which a loss on removed patches does not
            read: the last block and the prediction then skip a quarter of the tokens. Only with `mask_tokens`.

    Input shape:
        (batch, 1 + num_visible, encoder width) and (batch, num_patches), or (batch, 1 + num_patches, encoder width)

    Output shape:
        (batch, num_patches, patch_values)
    """

    def __init__(
        self,
        grid_size,
        patch_values,
        embed_dim=512,
        depth=8,
        num_heads=16,
        mask_tokens=True,
        remat="none",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.grid_size = tuple(grid_size)
        self.patch_values = patch_values
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.mask_tokens = mask_tokens
        self.remat = remat
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        check_heads(embed_dim, num_heads)
        check_remat(remat)
        policy = {"dtype": self.dtype_policy}
        self.embedding = Dense(embed_dim, name="embedding", **policy)
        self.position_embedding = PositionEmbedding(
            self.grid_size, embed_dim, trainable=False, name="position_embedding", **policy
        )
        self.blocks = [TransformerBlock(num_heads, name=f"block_{i}", **policy) for i in range(depth)]
        self.norm = LayerNorm(name="norm", **policy)
        self.prediction = Dense(patch_values, name="prediction", **policy)

    def build(self, latent_shape, ids_restore_shape=None):
        tokens = (None, self.num_patches + 1, self.embed_dim)
        if self.mask_tokens:
            self.mask_token = self.add_weight(
                name="mask_token",
                shape=(1, 1, self.embed_dim),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
        self.embedding.build(latent_shape)
        self.position_embedding.build()
        for block in self.blocks:
            block.build(tokens)
        self.norm.build(tokens)
        self.prediction.build(tokens)

    def call(self, latent, ids_restore=None, training=False, removed_only=False):
        x = self.embedding(latent)  # (B, L+1, D)
        if not self.mask_tokens:
            class_position, positions = self.position_embedding()  # (1, D), (N, D)
            x = x + ops.concatenate([class_position, positions], axis=0)  # (B, N+1, D)
            return self._predict(x, training)[:, 1:]  # (B, N, values)
        # The order of tokens means nothing to the blocks: removed patches stay last until they are predicted.
        num_removed = self.num_patches + 1 - x.shape[1]
        class_position, positions = self.position_embedding(ops.argsort(ids_restore))  # (1, D), (B, N, D)
        batch = ops.shape(x)[0]
        mask_tokens = ops.broadcast_to(ops.cast(self.mask_token, x.dtype), (batch, num_removed, self.embed_dim))
        class_positions = ops.broadcast_to(class_position, (batch, 1, self.embed_dim))
        x = ops.concatenate([x, mask_tokens], axis=1)  # (B, N+1, D)
        x = x + ops.concatenate([class_positions, positions], axis=1)  # (B, N+1, D)
        if removed_only:
            removed = self._predict(x, training, num_removed)  # (B, N-L, values)
            visible = ops.zeros((batch, self.num_patches - num_removed, self.patch_values), removed.dtype)
            x = ops.concatenate([visible, removed], axis=1)
        else:
            x = self._predict(x, training)[:, 1:]
        return gather_tokens(x, ids_restore)  # (B, N, values)

    def _predict(self, x, training, num_outputs=None):
        x = run_blocks(self.blocks, x, training=training, remat=self.remat, num_outputs=num_outputs)
        return self.prediction(self.norm(x))

    def compute_output_shape(self, latent_shape, ids_restore_shape=None):
        return (latent_shape[0], self.num_patches, self.patch_values)

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "patch_values": self.patch_values,
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mask_tokens": self.mask_tokens,
            "remat": self.remat,
        }
