"""The requests of TensorFlow Serving, by the rules of its documentation, and the tool that tries them."""

import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from fixtures.commands import run_command
from fixtures.tiny_vit import TINY_VIT

from keras_mae.models import Classifier, VisionTransformer
from keras_mae.training.saved_model import export, load_model
from tools import serve_check
from tools.serving_requests import RequestError, format_response, parse_request

TYPES = {"tag": "string", "signal": "int32", "sensor": "float32"}
# The example of the REST API's documentation, in rows and whole.
ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]
WHOLE = {
    "tag": ["foo", "bar"],
    "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
    "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
}


@pytest.mark.parametrize("form, values", [("instances", ROWS), ("inputs", WHOLE)])
def test_rows_and_whole_tensors_are_read_as_documented(form, values):
    name, found_form, tensors = parse_request(json.dumps({"signature_name": "some", form: values}), TYPES)
    assert (name, found_form) == ("some", form)
    assert tensors["tag"].tolist() == [b"foo", b"bar"]
    assert tensors["signal"].dtype == np.int32 and tensors["signal"].tolist() == WHOLE["signal"]
    assert tensors["sensor"].dtype == np.float32 and tensors["sensor"].tolist() == WHOLE["sensor"]


def test_a_single_input_goes_without_its_name():
    for body in ({"instances": [[[1, 2]], [[3, 4]]]}, {"inputs": {"x": [[[1, 2]], [[3, 4]]]}}):
        name, _, tensors = parse_request(json.dumps(body), {"x": "uint8"})
        assert name == "serving_default"
        assert tensors["x"].shape == (2, 1, 2)
    _, _, tensors = parse_request('{"instances": [{"b64": "aW1hZ2UgYnl0ZXM="}, "plain"]}', {"x": "string"})
    assert tensors["x"].tolist() == [b"image bytes", b"plain"]


@pytest.mark.parametrize(
    "request_, sentence",
    [
        ({"instances": [1], "inputs": [1]}, "either 'instances' or 'inputs'"),
        ({"signature_name": "x"}, "either 'instances' or 'inputs'"),
        ({"instances": []}, "at least one row"),
        ({"instances": [[1, 2], [3]]}, "same length as the first one, 2"),
        ({"instances": [[1, 2], 3]}, "same length as the first one, 2"),
        ({"instances": [1.5]}, "1.5 cannot be read as uint8"),
        ({"instances": [256]}, "256 cannot be read as uint8"),
        ({"instances": [True]}, "true cannot be read as uint8"),
        ({"instances": [{"y": 1}]}, "Row 0 must be an object with the keys x"),
        ({"inputs": {"y": [1]}}, "lacks x"),
    ],
)
def test_what_the_server_refuses_is_refused(request_, sentence):
    with pytest.raises(RequestError, match=sentence):
        parse_request(json.dumps(request_), {"x": "uint8"})


def test_responses_are_written_as_documented():
    names = np.array([[b"tench", b"caf\xc3\xa9"]], object)
    outputs = {"names": names, "raw_bytes": np.array([b"\xff"], object), "score": np.array([0.5], "float32")}
    row = {"names": ["tench", "café"], "raw_bytes": {"b64": "/w=="}, "score": 0.5}
    assert json.loads(format_response("instances", outputs)) == {"predictions": [row]}
    assert json.loads(format_response("inputs", outputs)) == {"outputs": {key: [value] for key, value in row.items()}}
    assert json.loads(format_response("instances", {"score": outputs["score"]})) == {"predictions": [0.5]}
    assert json.loads(format_response("inputs", {"score": outputs["score"]})) == {"outputs": [0.5]}
    with pytest.raises(RequestError, match="same first dimension"):
        format_response("instances", {"a": np.zeros(2), "b": np.zeros((3, 2))})
    with pytest.raises(RequestError, match="cannot be written as JSON"):
        format_response("inputs", {"a": np.zeros(2, "float16")})


@pytest.fixture(scope="module")
def classifier_saved_model(tmp_path_factory):
    classifier = Classifier(VisionTransformer(**TINY_VIT, final_norm=False), num_classes=3)
    classifier.build()
    folder = tmp_path_factory.mktemp("classifier") / "export"
    export(classifier, folder, classes=["left", "right", "café"])
    return folder / "saved_model"


def test_every_signature_of_a_classifier_is_served(classifier_saved_model, tmp_path, capsys):
    request = tmp_path / "request.json"
    flags = [f"--saved_model={classifier_saved_model}", f"--write_request={request}", "--signature=classify"]
    assert run_command(serve_check, *flags[:2]) == 0
    printed = capsys.readouterr().out
    assert f"{classifier_saved_model}: tag serve, signatures classify, features, serving_default" in printed
    assert printed.count("served in rows and whole") == 3
    assert re.search(r"input +image +uint8 +\(-1, 8, 8, 1\)", printed)
    assert re.search(r"output +top5_names +string +\(-1, 3\)", printed)
    assert json.loads(request.read_text())["signature_name"] == "serving_default"
    assert run_command(serve_check, *flags) == 0
    assert np.shape(json.loads(request.read_text())["instances"]) == (1, 8, 8, 1)


def test_a_request_of_rows_is_answered_with_the_models_numbers_and_names(classifier_saved_model):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype="uint8")
    signature = serve_check.read_signatures(classifier_saved_model)["classify"]
    loaded = tf.saved_model.load(str(classifier_saved_model))
    body = json.dumps({"signature_name": "classify", "instances": images.tolist()})
    response = serve_check.answer(body, signature, loaded.signatures["classify"], {"image": images})
    logits = np.asarray(load_model(classifier_saved_model)(images))
    for row, expected in zip(response["predictions"], logits, strict=True):
        np.testing.assert_allclose(row["logits"], expected, rtol=1e-5, atol=1e-6)
        assert row["top5_names"] == [("left", "right", "café")[number] for number in np.argsort(-expected)]


def test_what_cannot_be_served_is_named(tmp_path, capsys):
    def signature(function, shape, dtype="float32"):
        return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name="x")])

    module = tf.Module()
    signatures = {
        "two_rows_only": signature(lambda x: {"y": x}, (2, 3)),
        "sum": signature(lambda x: {"y": tf.reduce_sum(x)}, (None, 3)),
        "deep": signature(lambda x: {"y": tf.cast(x, "float32")}, (None, 3), "uint16"),
        "shorter": signature(lambda x: {"y": x[1:]}, (None, 3)),
        "both": signature(lambda x: {"y": x, "z": x[1:]}, (None, 3)),
        "good": signature(lambda x: {"y": x + 1}, (None, None)),
    }
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    request = tmp_path / "request.json"
    assert run_command(serve_check, f"--saved_model={tmp_path}", f"--write_request={request}") == 1
    assert "no signature 'serving_default'" in capsys.readouterr().err
    flags = (f"--saved_model={tmp_path}", f"--write_request={request}", "--signature=deep")
    assert run_command(serve_check, *flags) == 1
    assert "request.json is not written: deep has faults" in capsys.readouterr().err and not request.exists()
    assert run_command(serve_check, f"--saved_model={tmp_path}") == 1
    parts = dict(re.findall(r"^(\w+)\n(.*?)(?:\n\n|\Z)", capsys.readouterr().out, re.S | re.M))
    assert "FAULT: x is not batch-first: (2, 3)" in parts["two_rows_only"]
    assert "FAULT: y is not batch-first: ()" in parts["sum"]
    assert "FAULT: JSON knows no uint16, the type of x; gRPC does" in parts["deep"]
    assert "FAULT: 3 instances give 2 rows" in parts["shorter"]
    assert "FAULT: a request of instances fails: Rows need outputs of the same first dimension" in parts["both"]
    assert "served in rows and whole" in parts["good"]


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (None, "is no SavedModel: there is no saved_model.pb in it"),
        (b"nonsense", "saved_model.pb is damaged"),
        (b"", "has no graph with the tag 'serve'"),
    ],
)
def test_what_is_no_saved_model_is_refused(tmp_path, capsys, damage, sentence):
    if damage is not None:
        (tmp_path / "saved_model.pb").write_bytes(damage)
    assert run_command(serve_check, f"--saved_model={tmp_path}") == 1
    assert sentence in capsys.readouterr().err


def test_cut_variables_are_named_in_one_sentence(classifier_saved_model, tmp_path, capsys):
    folder = shutil.copytree(classifier_saved_model, tmp_path / "cut")
    (variables,) = folder.glob("variables/variables.data-*")
    variables.write_bytes(variables.read_bytes()[:1000])
    assert run_command(serve_check, f"--saved_model={folder}") == 1
    assert f"ERROR: {folder} cannot be loaded: " in capsys.readouterr().err


def test_a_signature_that_is_not_there_is_refused(classifier_saved_model, capsys):
    assert run_command(serve_check, f"--saved_model={classifier_saved_model}", "--signature=other") == 1
    assert "Expected one of: classify, features, serving_default" in capsys.readouterr().err
