"""A SavedModel inside a Keras model, for those who do without the structure of what it holds."""

import keras


class SavedModelLayer(keras.layers.TFSMLayer):
    """A SavedModel as a trainable Keras layer.

    `keras.layers.TFSMLayer` keeps variable names such as `kernel:0`, from which Keras optimizers with slots (Adam)
    cannot make names of their own; here the names lose the colon. In a model give it a `keras.Input` of the dtype that
    the SavedModel takes: uint8, or uint16 of a model that was trained on such arrays.

    Args:
        filepath: the SavedModel folder.
        call_endpoint: endpoint to call, "features" or "classify".
        trainable: whether its variables train.
        call_training_endpoint: endpoint to call in training instead, such as "features_training"; None: the same.
    """

    def __init__(
        self, filepath, call_endpoint="features", trainable=True, name=None, dtype=None, call_training_endpoint=None
    ):
        super().__init__(str(filepath), call_endpoint, call_training_endpoint, trainable, name=name, dtype=dtype)

    def _add_existing_weight(self, weight):
        variable = keras.Variable(
            initializer=weight,
            shape=weight.shape,
            trainable=weight.trainable,
            dtype=weight.dtype,
            name=weight.name.replace("/", "_").replace(":", "_"),
        )
        self._track_variable(variable)
