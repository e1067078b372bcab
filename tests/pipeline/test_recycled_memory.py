import numpy as np
import tensorflow as tf

from pipeline.recycled_memory import ALIGNMENT, RecycledMemory

SHAPE = (2, 3, 5)


def _address(array):
    return array.__array_interface__["data"][0]


def test_an_array_has_the_shape_and_begins_where_tensorflow_wants_it():
    array = RecycledMemory().array(SHAPE)
    assert array.shape == SHAPE and array.dtype == np.uint8 and array.flags.c_contiguous
    assert _address(array) % ALIGNMENT == 0


def test_memory_is_given_out_again_when_nobody_uses_it():
    memory = RecycledMemory()
    array = memory.array(SHAPE)
    address = _address(array)
    del array
    assert _address(memory.array(SHAPE)) == address


def test_memory_in_use_is_not_given_out():
    memory = RecycledMemory()
    arrays = [memory.array(SHAPE) for _ in range(10)]
    assert len({_address(array) for array in arrays}) == 10


def test_a_view_keeps_its_memory():
    memory = RecycledMemory()
    array = memory.array(SHAPE)
    view, address = array[1:, 0], _address(array)
    del array
    assert _address(memory.array(SHAPE)) != address
    del view
    assert address in [_address(array) for array in [memory.array(SHAPE), memory.array(SHAPE)]]


def test_a_memoryview_keeps_its_memory():
    memory = RecycledMemory()
    array = memory.array(SHAPE)
    view, address = memoryview(array), _address(array)
    del array
    assert _address(memory.array(SHAPE)) != address
    assert view.nbytes == 30


def test_memory_of_another_size_is_not_given_out():
    memory = RecycledMemory()
    address = _address(memory.array(SHAPE))
    assert _address(memory.array((3, 3, 5))) != address


def test_a_dataset_never_sees_its_earlier_elements_change():
    memory = RecycledMemory()

    def generate():
        for number in range(40):
            array = memory.array((64, 64))
            array[...] = number
            yield array

    signature = tf.TensorSpec((64, 64), tf.uint8)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).prefetch(4)
    elements = list(dataset)
    assert [np.unique(element).tolist() for element in elements] == [[number] for number in range(40)]
