"""TensorFlow Serving's predict requests and responses in JSON, by the rules that its server follows.

https://www.tensorflow.org/tfx/serving/api_rest: `instances` is a list of rows, `inputs` names whole tensors; a single
input may go without its name. The type of a tensor is the signature's; its shape is read from the nesting.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

INTEGERS = ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64")
DECIMALS = ("float32", "float64")
JSON_DTYPES = (*INTEGERS, *DECIMALS, "bool", "string")


class RequestError(ValueError):
    """A request that the server refuses, or a response that it cannot write."""


def parse_request(body: str, dtypes: Mapping[str, str]) -> tuple[str, str, dict[str, np.ndarray]]:
    """The signature's name, "instances" or "inputs", and the tensors of a request by name.

    Args:
        body: of the POST to /v1/models/NAME:predict.
        dtypes: the signature's inputs: TensorFlow's names of types by name.

    Raises:
        RequestError: the server would refuse it.
    """
    request = json.loads(body)
    forms = [form for form in ("instances", "inputs") if form in request]
    if len(forms) != 1:
        raise RequestError(f"Expected either 'instances' or 'inputs'. Received: {sorted(request)}")
    values = request[forms[0]]
    columns = _columns_of_rows(values, list(dtypes)) if forms == ["instances"] else _columns(values, list(dtypes))
    tensors = {name: _tensor(values, dtypes[name]) for name, values in columns.items()}
    return request.get("signature_name", "serving_default"), forms[0], tensors


def format_response(form: str, outputs: Mapping[str, np.ndarray]) -> str:
    """What the server answers: `predictions`, a row for each instance, or `outputs`, whole tensors.

    A single output goes without its name.

    Raises:
        RequestError: outputs have other numbers of rows, or types that JSON does not know.
    """
    for name, array in outputs.items():
        if _dtype_name(array) not in JSON_DTYPES:
            raise RequestError(f"Output {name!r} of type {array.dtype} cannot be written as JSON.")
    columns = {name: _as_json(name, array) for name, array in outputs.items()}
    if form == "inputs":
        return json.dumps({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    sizes = {name: array.shape[0] if array.shape else None for name, array in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise RequestError(f"Rows need outputs of the same first dimension. Received: {sizes}")
    if len(columns) == 1:
        return json.dumps({"predictions": next(iter(columns.values()))})
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"predictions": rows})


def _columns_of_rows(rows: Any, names: list[str]) -> dict[str, list]:
    if not isinstance(rows, list) or not rows:
        raise RequestError("'instances' must be a list of at least one row.")
    if not _is_named(rows[0]):
        if len(names) > 1:
            raise RequestError(f"Rows of several inputs must be objects with the keys {', '.join(sorted(names))}.")
        rows = [{names[0]: row} for row in rows]
    for number, row in enumerate(rows):
        if not _is_named(row) or set(row) != set(names):
            raise RequestError(f"Row {number} must be an object with the keys {', '.join(sorted(names))}.")
    return {name: [row[name] for row in rows] for name in names}


def _columns(values: Any, names: list[str]) -> dict[str, Any]:
    if not _is_named(values):
        if len(names) > 1:
            raise RequestError(f"'inputs' must be an object with the keys {', '.join(sorted(names))}.")
        return {names[0]: values}
    missing = sorted(set(names) - set(values))
    if missing:
        raise RequestError(f"'inputs' lacks {', '.join(missing)}.")
    return {name: values[name] for name in names}


def _is_named(value: Any) -> bool:
    """Whether it is an object of named tensors, as against a value; binary values are objects, too."""
    return isinstance(value, dict) and set(value) != {"b64"}


def _tensor(value: Any, dtype: str) -> np.ndarray:
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    leaves = [_leaf(leaf, dtype) for leaf in _leaves(value, shape)]
    return np.array(leaves, object if dtype == "string" else dtype).reshape(shape)


def _leaves(value: Any, shape: list[int]) -> Iterator[Any]:
    if not shape:
        yield value
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise RequestError(f"Lists must be of the same length as the first one, {shape[0]}.")
    for inner in value:
        yield from _leaves(inner, shape[1:])


def _leaf(value: Any, dtype: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == "string" and isinstance(value, dict) and isinstance(value.get("b64"), str) and len(value) == 1:
        return base64.b64decode(value["b64"])
    if dtype == "string" and isinstance(value, str):
        return value.encode()
    if dtype == "bool" and isinstance(value, bool) or dtype in DECIMALS and is_number:
        return value
    if dtype in INTEGERS and is_number and isinstance(value, int):
        limits = np.iinfo(dtype)
        if limits.min <= value <= limits.max:
            return value
    raise RequestError(f"{json.dumps(value)[:40]} cannot be read as {dtype}.")


def _as_json(name: str, array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()
    encode = _base64 if name.endswith("_bytes") else bytes.decode
    return np.array([encode(value) for value in array.ravel()], object).reshape(array.shape).tolist()


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _dtype_name(array: np.ndarray) -> str:
    return "string" if array.dtype == object else array.dtype.name
