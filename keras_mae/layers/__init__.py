"""Building blocks of the Vision Transformer and of the masked autoencoder, in `keras.ops` only."""

from keras_mae.layers.attention import SelfAttention
from keras_mae.layers.block_masking import BlockMasking, block_masking
from keras_mae.layers.drop_path import DropPath
from keras_mae.layers.grid_masking import GridMasking, grid_masking
from keras_mae.layers.masking import RandomMasking, gather_tokens, num_visible, random_masking
from keras_mae.layers.masking_kinds import MASKINGS, make_masking
from keras_mae.layers.patches import PatchEmbedding, patchify, unpatchify
from keras_mae.layers.positions import PositionEmbedding, sincos_position_table
from keras_mae.layers.transformer import TransformerBlock

__all__ = [
    "MASKINGS",
    "BlockMasking",
    "DropPath",
    "GridMasking",
    "PatchEmbedding",
    "PositionEmbedding",
    "RandomMasking",
    "SelfAttention",
    "TransformerBlock",
    "block_masking",
    "gather_tokens",
    "grid_masking",
    "make_masking",
    "num_visible",
    "patchify",
    "random_masking",
    "sincos_position_table",
    "unpatchify",
]
