"""Asks a running node with NVIDIA's stock `tritonclient[grpc]` and checks every answer; tritonclient and numpy only.

    python -m venv .venv && .venv/bin/pip install 'tritonclient[grpc]' numpy
    .venv/bin/python tests/parity/tritonclient_check.py HOST:PORT MODEL --rows FILE.csv --expect-accuracy 0.97 \
        [--root-ca ca.pem --key key.pem --cert cert.pem]

FILE.csv has a header, a column `label` with class indices, and raw values in all other columns. A line a check, then
`N passed, M failed`; the exit status is 0 only where nothing failed.
"""

import argparse
import csv
import sys
import time
import traceback

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

BATCH = 32


class Checks:
    """Runs checks one by one and counts them; a failed one does not stop the rest."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def run(self, name, check, *arguments):
        try:
            detail = check(*arguments)
            self.passed += 1
            print(f"ok      {name}" + (f": {detail}" if detail else ""))
        except Exception as error:  # a check may fail in any way; the next one runs nevertheless
            self.failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
            if not isinstance(error, (AssertionError, InferenceServerException)):
                traceback.print_exc()


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def expect_equal(what, found, expected):
    expect(found == expected, f"{what}: expected {expected!r}, got {found!r}")


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        columns = [name for name in rows.fieldnames if name != "label"]
        records = [([float(row[name]) for name in columns], int(row["label"])) for row in rows]
    return np.array([values for values, _ in records], np.float32), np.array([label for _, label in records])


def string_parameter(response, name):
    return response.get_response().parameters[name].string_param


class Node:
    """One connection, and what the model's metadata says about requests to it."""

    def __init__(self, client, model):
        self.client = client
        self.model = model
        metadata = client.get_model_metadata(model)
        self.version = metadata.versions[0]
        self.input = metadata.inputs[0]
        self.output = metadata.outputs[0]
        self.sample_shape = list(self.input.shape)[1:]

    def tensor(self, rows, name=None, datatype=None, shape=None):
        data = np.asarray(rows).reshape([len(rows)] + self.sample_shape)
        tensor = triton.InferInput(name or self.input.name, list(data.shape), datatype or "FP32")
        tensor.set_data_from_numpy(data)
        if shape is not None:
            tensor.set_shape(shape)
        return tensor

    def infer(self, tensors, **options):
        # A version swap between two calls is no error, so the caller names a version only where it tests that.
        return self.client.infer(options.pop("model", self.model), tensors, **options)


def check_live(client):
    expect(client.is_server_live(), "is_server_live answered false")
    expect(client.is_server_ready(), "is_server_ready answered false")


def check_model_ready(client, model):
    expect(client.is_model_ready(model), "is_model_ready answered false for the model")
    expect(not client.is_model_ready("no-such-model"), "is_model_ready answered true for an unknown model")
    expect(not client.is_model_ready(model, "999999999"), "is_model_ready answered true for an unknown version")


def check_server_metadata(client):
    metadata = client.get_server_metadata()
    expect_equal("name", metadata.name, "fedge")
    expect(metadata.version, "the version is empty")
    return f"fedge {metadata.version}"


def check_model_metadata(node):
    metadata = node.client.get_model_metadata(node.model)
    expect_equal("name", metadata.name, node.model)
    expect_equal("platform", metadata.platform, "onnx_tract")
    expect(len(metadata.versions) == 1 and metadata.versions[0].isdigit(), f"versions: {list(metadata.versions)}")
    expect_equal("input type", metadata.inputs[0].datatype, "FP32")
    expect_equal("input batch", metadata.inputs[0].shape[0], -1)
    expect_equal("output type", metadata.outputs[0].datatype, "FP32")
    return f"{node.input.name} {list(node.input.shape)} -> {node.output.name} {list(node.output.shape)}"


def check_accuracy(node, rows, labels, minimum):
    started = time.monotonic()
    classes = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        logits = node.infer([node.tensor(part)]).as_numpy(node.output.name)
        expect_equal("output shape", list(logits.shape[:1]), [len(part)])
        expect_equal("output type", logits.dtype, np.float32)
        classes.extend(logits.argmax(axis=1))
    accuracy = float((np.array(classes) == labels).mean())
    expect(accuracy >= minimum, f"accuracy {accuracy:.4f} on {len(rows)} rows, expected at least {minimum}")
    return f"{accuracy:.4f} on {len(rows)} rows in {time.monotonic() - started:.2f} s"


def check_batch_equals_single(node, rows):
    rows = rows[:8]
    together = node.infer([node.tensor(rows)]).as_numpy(node.output.name)
    for row, expected in zip(rows, together):
        alone = node.infer([node.tensor(row[None])]).as_numpy(node.output.name)[0]
        # A version may be swapped in between; the same version gives the same numbers.
        expect(np.allclose(alone, expected, rtol=1e-4, atol=1e-4), f"alone {alone}, in a batch {expected}")


def check_reply(node, rows):
    single = node.infer([node.tensor(rows[:1])], request_id="check-7")
    response = single.get_response()
    expect_equal("id", response.id, "check-7")
    expect_equal("model", response.model_name, node.model)
    expect(response.model_version.isdigit(), f"the reply names the version {response.model_version!r}")
    expect_equal("length of fedge_model_digest", len(string_parameter(single, "fedge_model_digest")), 64)
    precision = string_parameter(single, "fedge_precision")
    expect(precision in ("int8", "float"), f"fedge_precision: {precision!r}")
    expect(len(response.raw_output_contents) == 1, "the reply is not raw")
    named = node.infer([node.tensor(rows[:1])], model_version=response.model_version)
    expect_equal("version", named.get_response().model_version, response.model_version)
    again = node.infer([node.tensor(rows[:1])], request_id="check-7")
    expect_equal("id of a repeated request", again.get_response().id, "check-7")
    return f"version {response.model_version}, {precision}"


def check_requested_output(node, rows):
    asked = node.infer([node.tensor(rows[:2])], outputs=[triton.InferRequestedOutput(node.output.name)])
    expect_equal("rows", asked.as_numpy(node.output.name).shape[0], 2)
    ranked = triton.InferRequestedOutput(node.output.name, class_count=3)
    texts = node.infer([node.tensor(rows[:2])], outputs=[ranked]).as_numpy(node.output.name)
    expect_equal("shape of the classification", texts.shape, (2, 3))
    logits = node.infer([node.tensor(rows[:2])]).as_numpy(node.output.name)
    for row, text in zip(logits, texts[:, 0]):
        expect_equal("first class", int(text.decode().split(":")[1]), int(row.argmax()))


def check_refused(node, code, words, make):
    """`make` asks for something wrong; the answer must be this code, with these words in its message."""
    try:
        make()
    except InferenceServerException as error:
        expect_equal("status", error.status(), f"StatusCode.{code}")
        for word in words:
            expect(word in error.message(), f"the message lacks {word!r}: {error.message()}")
        return error.message()
    raise AssertionError(f"was answered, expected {code}")


def refusals(node, row):
    """Name, code, words of the message, and the wrong request."""
    name = node.input.name
    fp64 = row.astype(np.float64)
    not_finite = np.where(np.arange(row.size).reshape(row.shape) == 0, np.nan, row).astype(np.float32)
    rank = [1, row.size]
    batch = [1 << 40] + node.sample_shape
    return [
        ("unknown model", "NOT_FOUND", ["no-such-model"], lambda: node.infer([node.tensor(row)], model="no-such-model")),
        ("unknown version", "NOT_FOUND", ["999999999"], lambda: node.infer([node.tensor(row)], model_version="999999999")),
        ("metadata of an unknown model", "NOT_FOUND", [], lambda: node.client.get_model_metadata("no-such-model")),
        ("version that is no number", "INVALID_ARGUMENT", ["latest"], lambda: node.infer([node.tensor(row)], model_version="latest")),
        ("wrong type", "INVALID_ARGUMENT", [name, "FP32", "FP64"], lambda: node.infer([node.tensor(fp64, datatype="FP64")])),
        ("wrong input name", "INVALID_ARGUMENT", ["no-such-input"], lambda: node.infer([node.tensor(row, name="no-such-input")])),
        ("wrong output name", "INVALID_ARGUMENT", ["no-such-output"], lambda: node.infer([node.tensor(row)], outputs=[triton.InferRequestedOutput("no-such-output")])),
        ("wrong rank", "INVALID_ARGUMENT", [name], lambda: node.infer([node.tensor(row, shape=rank)])),
        ("wrong byte count", "INVALID_ARGUMENT", [name, "bytes"], lambda: node.infer([node.tensor(row, shape=[2] + node.sample_shape)])),
        ("batch of 2^40", "INVALID_ARGUMENT", [name], lambda: node.infer([node.tensor(row, shape=batch)])),
        ("empty batch", "INVALID_ARGUMENT", [name], lambda: node.infer([node.tensor(row, shape=[0] + node.sample_shape)])),
        ("input given twice", "INVALID_ARGUMENT", [name], lambda: node.infer([node.tensor(row), node.tensor(row)])),
        ("no input", "INVALID_ARGUMENT", [name], lambda: node.infer([])),
        ("NaN", "INVALID_ARGUMENT", [name, "finite"], lambda: node.infer([node.tensor(not_finite)])),
    ]


def arguments():
    parser = argparse.ArgumentParser(description="Checks a node with the stock tritonclient.")
    parser.add_argument("address", help="HOST:PORT of the node's inference port")
    parser.add_argument("model")
    parser.add_argument("--rows", required=True, help="CSV file with a column named label")
    parser.add_argument("--expect-accuracy", type=float, required=True, help="0 to 1")
    parser.add_argument("--root-ca", help="PEM file; with it the connection uses TLS")
    parser.add_argument("--key", help="PEM file with the client's private key")
    parser.add_argument("--cert", help="PEM file with the client's certificate chain")
    return parser.parse_args()


def main():
    given = arguments()
    rows, labels = read_rows(given.rows)
    client = triton.InferenceServerClient(
        given.address,
        ssl=given.root_ca is not None,
        root_certificates=given.root_ca,
        private_key=given.key,
        certificate_chain=given.cert,
    )
    checks = Checks()
    checks.run("server live and ready", check_live, client)
    checks.run("model ready, unknown ones not", check_model_ready, client, given.model)
    checks.run("server metadata", check_server_metadata, client)
    try:
        node = Node(client, given.model)
    except InferenceServerException as error:
        print(f"FAILED  model metadata: {error}")
        print(f"{checks.passed} passed, {checks.failed + 1} failed")
        return 1
    checks.run("model metadata", check_model_metadata, node)
    checks.run("accuracy", check_accuracy, node, rows, labels, given.expect_accuracy)
    checks.run("a batch answers as single requests do", check_batch_equals_single, node, rows)
    checks.run("id, version and parameters of a reply", check_reply, node, rows)
    checks.run("requested output and classification", check_requested_output, node, rows)
    for name, code, words, make in refusals(node, rows[:1]):
        checks.run(f"{name} is {code}", check_refused, node, code, words, make)
    checks.run("live after all of that", check_live, client)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 0 if checks.failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
