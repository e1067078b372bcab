"""Shows a SavedModel as TensorFlow Serving serves it, and tries its REST requests without a server.

  python -m tools.serve_check --saved_model=runs/base-finetuned/export/saved_model
  python -m tools.serve_check --saved_model=... --signature=classify --write_request=request.json
  curl -d @request.json http://HOST:8501/v1/models/NAME:predict

Prints names, types and shapes as the server's metadata has them, and sends each signature a request of rows
(`instances`) and one of whole tensors (`inputs`) through the server's JSON rules. Exit code 1 if one would fail there.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np
from absl import flags

from keras_mae import commandline
from tools.serving_requests import JSON_DTYPES, RequestError, format_response, parse_request

FLAGS = flags.FLAGS

TAG = "serve"
DEFAULT = "serving_default"  # signature of requests that name none
ROWS = 3  # of a request that is tried
FREE_SIDE = 48  # where a signature leaves a dimension open, such as the height of images to be resized


class Tensor(NamedTuple):
    """An input or output of a signature; -1 is a dimension of any size."""

    dtype: str
    shape: tuple[int, ...]


class Signature(NamedTuple):
    """Tensors by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read_signatures(folder: pathlib.Path) -> dict[str, Signature]:
    """The signatures that the server's metadata shows, by name.

    Raises:
        CommandError: there is no SavedModel, or none to serve.
    """
    file = folder / "saved_model.pb"
    if not file.exists():
        raise commandline.CommandError(f"{folder} is no SavedModel: there is no {file.name} in it.")
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    content = saved_model_pb2.SavedModel()
    try:
        content.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise commandline.CommandError(f"{file} is damaged: {error}") from None
    served = [graph for graph in content.meta_graphs if TAG in graph.meta_info_def.tags]
    if not served:
        raise commandline.CommandError(f"{folder} has no graph with the tag {TAG!r}.")
    return {
        name: Signature(_tensors(signature.inputs), _tensors(signature.outputs))
        for name, signature in sorted(served[0].signature_def.items())
        if signature.inputs
    }


def load(folder: pathlib.Path):
    """What TensorFlow loads of a SavedModel.

    Raises:
        CommandError: it is damaged, or needs what is not here.
    """
    import tensorflow as tf

    try:
        return tf.saved_model.load(str(folder), tags=[TAG])
    except (ValueError, OSError, LookupError, tf.errors.OpError) as error:
        raise commandline.CommandError(f"{folder} cannot be loaded: {error}") from error


def _tensors(infos) -> dict[str, Tensor]:
    import tensorflow as tf

    return {
        name: Tensor(tf.as_dtype(info.dtype).name, tuple(dim.size for dim in info.tensor_shape.dim))
        for name, info in sorted(infos.items())
    }


def example_inputs(signature: Signature, rows: int) -> dict[str, np.ndarray]:
    """Random tensors that a signature takes: whole numbers up to 255, others from [0, 1)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (dtype, shape) in signature.inputs.items():
        size = (rows, *(FREE_SIDE if dim == -1 else dim for dim in shape[1:]))
        whole = np.issubdtype(np.dtype(dtype), np.integer)
        arrays[name] = rng.integers(0, 128 if dtype == "int8" else 256, size) if whole else rng.random(size)
        arrays[name] = arrays[name].astype(dtype)
    return arrays


def request_body(name: str, inputs: dict[str, np.ndarray], form: str) -> str:
    """A request of these tensors in rows ("instances") or whole ("inputs"); a single input goes without its name."""
    columns = {key: array.tolist() for key, array in inputs.items()}
    if len(columns) == 1:
        values = next(iter(columns.values()))
    elif form == "instances":
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    else:
        values = columns
    return json.dumps({"signature_name": name, form: values})


def faults(name: str, signature: Signature, function) -> list[str]:
    """Sentences: why the server could not serve a signature. Empty: it can.

    Args:
        name: of the signature.
        signature: as `read_signatures` gives it.
        function: the signature, loaded.
    """
    tensors = {**signature.inputs, **signature.outputs}
    found = [f"{key} is not batch-first: {t.shape}" for key, t in tensors.items() if t.shape[:1] != (-1,)]
    unknown = {key: t.dtype for key, t in tensors.items() if t.dtype not in JSON_DTYPES}
    found += [f"JSON knows no {dtype}, the type of {key}; gRPC does" for key, dtype in unknown.items()]
    texts = [key for key, tensor in signature.inputs.items() if tensor.dtype == "string"]
    found += [f"{key} takes text, and this tool has no example of it" for key in texts]
    if found:
        return found
    import tensorflow as tf

    inputs = example_inputs(signature, ROWS)
    for form in ("instances", "inputs"):
        try:
            response = answer(request_body(name, inputs, form), signature, function, inputs)
        except (ValueError, tf.errors.OpError) as error:
            found.append(f"a request of {form} fails: {error}")
            continue
        values = response["predictions" if form == "instances" else "outputs"]
        rows = values if isinstance(values, list) else next(iter(values.values()))
        if len(rows) != ROWS:
            found.append(f"{ROWS} {form} give {len(rows)} rows")
    return found


def answer(body: str, signature: Signature, function, expected: dict[str, np.ndarray]) -> dict:
    """What the server answers to a request that was made of the `expected` tensors.

    Raises:
        RequestError: the request is refused, or other tensors arrive.
    """
    import tensorflow as tf

    dtypes = {key: tensor.dtype for key, tensor in signature.inputs.items()}
    _, form, tensors = parse_request(body, dtypes)
    for key, array in expected.items():
        if tensors[key].shape != array.shape or not np.array_equal(tensors[key], array):
            raise RequestError(f"{key} does not arrive as it was sent")
    outputs = function(**{key: tf.constant(array) for key, array in tensors.items()})
    return json.loads(format_response(form, {key: value.numpy() for key, value in outputs.items()}))


def describe(name: str, signature: Signature) -> str:
    """Lines about a signature, and its request in short."""
    lines = [name]
    for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        lines += [f"  {kind:7} {key:23} {tensor.dtype:8} {tensor.shape}" for key, tensor in tensors.items()]
    row = ", ".join(f'"{key}": {key.upper()}' for key in signature.inputs)
    row = f"{{{row}}}" if len(signature.inputs) > 1 else row.partition(": ")[2]
    return "\n".join([*lines, f'  request {{"signature_name": "{name}", "instances": [{row}, ...]}}'])


def main(argv):
    folder = pathlib.Path(FLAGS.saved_model)
    signatures = read_signatures(folder)
    wanted = FLAGS.signature
    requested = wanted or (DEFAULT if FLAGS.write_request else None)
    if requested is not None and requested not in signatures:
        raise commandline.CommandError(f"There is no signature {requested!r}. Expected one of: {', '.join(signatures)}")

    loaded = load(folder)
    print(f"{folder}: tag {TAG}, signatures {', '.join(signatures)}")
    found = {}
    for name in [wanted] if wanted else signatures:
        print(f"\n{describe(name, signatures[name])}")
        found[name] = faults(name, signatures[name], loaded.signatures[name])
        print("\n".join(f"  FAULT: {fault}" for fault in found[name]) or "  served in rows and whole")
    if FLAGS.write_request:
        if found[requested]:
            raise commandline.CommandError(f"{FLAGS.write_request} is not written: {requested} has faults.")
        body = request_body(requested, example_inputs(signatures[requested], 1), "instances")
        pathlib.Path(FLAGS.write_request).write_text(body)
    return 1 if any(found.values()) else 0


def define_flags():
    flags.DEFINE_string("saved_model", None, "SavedModel folder.", required=True)
    flags.DEFINE_string("signature", None, "Only this signature; unset: all.")
    flags.DEFINE_string("write_request", None, "File for a request of one random row, for curl.")


def entry_point():
    commandline.run(main, define_flags)


if __name__ == "__main__":
    entry_point()
