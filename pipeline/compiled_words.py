"""Four bytes at a time, at any address, for compiled functions: an RGB pixel and whatever comes after it.

Moving pixels byte by byte takes more than twice as long, and NumPy has no view of words at odd addresses. Nothing
checks that an offset lies in the array.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def read_word(typing_context, array, offset):
    """The word, uint32, that begins `offset` bytes after the first byte of a uint8 array."""

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, signature, values), align=1)

    return types.uint32(array, types.intp), generate


@intrinsic
def write_word(typing_context, array, offset, word):
    """Writes a word, uint32, that begins `offset` bytes after the first byte of a uint8 array."""

    def generate(context, builder, signature, values):
        builder.store(values[2], _pointer(context, builder, signature, values), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint32), generate


def _pointer(context, builder, signature, values):
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    return builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(32).as_pointer())
