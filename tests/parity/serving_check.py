"""Asks a standalone node with NVIDIA's stock `tritonclient` over gRPC and HTTP, row by row of the protocol's semantics.

    .venv/bin/python tests/parity/serving_check.py GRPC_HOST:PORT HTTP_HOST:PORT METRICS_HOST:PORT

The node serves `digits` (versions 1 and 2, labels 0 to 9, gone when unloaded) and `pair`, whose int64 inputs `a` and `b`
`[-1, 2]` give `sum` and `difference`. A line a check, then `N passed, M failed`; the exit status is 0 where none failed.
"""

import json
import queue
import sys
import threading
import traceback
import urllib.request

import grpc
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

CODES = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "INTERNAL": 500}


class Checks:
    def __init__(self):
        self.passed = 0
        self.failed = 0

    def run(self, name, check, *arguments):
        try:
            check(*arguments)
            self.passed += 1
            print(f"ok      {name}")
        except Exception as error:  # a check may fail in any way; the next one runs nevertheless
            self.failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
            if not isinstance(error, (AssertionError, InferenceServerException)):
                traceback.print_exc()


def equal(what, found, expected):
    assert found == expected, f"{what}: expected {expected!r}, got {found!r}"


class Wire:
    """The same questions by either client."""

    def __init__(self, module, client):
        self.module = module
        self.client = client
        self.http = module is over_http

    def answer(self, value):
        """HTTP gives dictionaries, gRPC messages."""
        if self.http:
            return value
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(value, preserving_proto_field_name=True)

    def tensor(self, name, data, datatype, shape=None):
        tensor = self.module.InferInput(name, list(data.shape), datatype)
        tensor.set_data_from_numpy(data)
        if shape is not None:
            tensor.set_shape(list(shape))
        return tensor

    def digits(self, rows=1, **options):
        data = np.arange(rows * 64, dtype=np.float32).reshape(rows, 1, 8, 8) % 17
        return self.client.infer("digits", [self.tensor("pixels", data, "FP32")], **options)

    def pair(self, a, b, **options):
        inputs = [self.tensor("b", b, "INT64"), self.tensor("a", a, "INT64")]
        return self.client.infer("pair", inputs, **options)


def refused(wire, code, words, ask):
    try:
        ask()
    except InferenceServerException as error:
        expected = str(CODES[code]) if wire.http else f"StatusCode.{code}"
        equal("status", error.status(), expected)
        for word in words:
            assert word in error.message(), f"the message lacks {word!r}: {error.message()}"
        return
    raise AssertionError(f"was answered, expected {code}")


def live_and_ready(wire):
    client = wire.client
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "3") and not client.is_model_ready("letters")


def metadata(wire):
    server = wire.answer(wire.client.get_server_metadata())
    equal("name", server["name"], "fedge")
    assert "model_repository" in server["extensions"], server
    found = wire.answer(wire.client.get_model_metadata("digits"))
    equal("versions", found["versions"], ["1", "2"])
    equal("datatype", found["inputs"][0]["datatype"], "FP32")
    equal("shape", [int(dim) for dim in found["inputs"][0]["shape"]], [-1, 1, 8, 8])
    pair = wire.answer(wire.client.get_model_metadata("pair"))
    equal("inputs", [tensor["name"] for tensor in pair["inputs"]], ["a", "b"])
    equal("outputs", [tensor["name"] for tensor in pair["outputs"]], ["sum", "difference"])


def configuration(wire):
    found = wire.answer(wire.client.get_model_config("digits"))
    config = found if wire.http else found["config"]
    equal("name", config["name"], "digits")
    assert int(config["max_batch_size"]) >= 32, config
    equal("data type", config["input"][0]["data_type"], "TYPE_FP32")
    equal("dims without the batch", [int(dim) for dim in config["input"][0]["dims"]], [1, 8, 8])
    assert "dynamic_batching" in config, config


def answers(wire):
    single = wire.digits(request_id="check 7")
    response = single.get_response() if wire.http else wire.answer(single.get_response())
    equal("id", response["id"], "check 7")
    equal("version", response["model_version"], "2")
    parameters = response["parameters"]
    digest = parameters["fedge_model_digest"]
    equal("digest", len(digest if wire.http else digest["string_param"]), 64)
    equal("shape", single.as_numpy("logits").shape, (1, 10))
    first = wire.digits(model_version="1").as_numpy("logits")
    assert not np.allclose(first, single.as_numpy("logits")), "both versions answer alike"
    together = wire.digits(rows=5).as_numpy("logits")
    assert np.allclose(together[0], single.as_numpy("logits")[0], rtol=1e-4, atol=1e-4)


def several_tensors(wire):
    a, b = np.array([[1, 2], [3, 1 << 40]], np.int64), np.array([[10, 20], [30, 1]], np.int64)
    reply = wire.pair(a, b)
    assert (reply.as_numpy("sum") == a + b).all() and (reply.as_numpy("difference") == a - b).all()
    one = wire.pair(a, b, outputs=[wire.module.InferRequestedOutput("difference")])
    assert (one.as_numpy("difference") == a - b).all()
    assert one.as_numpy("sum") is None


def classification(wire):
    ranked = wire.digits(rows=2, outputs=[wire.module.InferRequestedOutput("logits", class_count=3)])
    texts = ranked.as_numpy("logits")
    equal("shape", texts.shape, (2, 3))
    logits = wire.digits(rows=2).as_numpy("logits")
    for row, text in zip(logits, texts[:, 0]):
        value, index, label = (text if isinstance(text, str) else text.decode()).split(":")
        equal("class", int(index), int(row.argmax()))
        equal("label", label, index)
        assert abs(float(value) - row.max()) < 1e-3


def wrong_requests(wire):
    data = np.zeros((1, 1, 8, 8), np.float32)
    ask = lambda tensors, **options: wire.client.infer(options.pop("model", "digits"), tensors, **options)
    good = lambda: [wire.tensor("pixels", data, "FP32")]
    rows = [
        ("NOT_FOUND", ["letters"], lambda: ask(good(), model="letters")),
        ("NOT_FOUND", ["3", "2, 1"], lambda: ask(good(), model_version="3")),
        ("NOT_FOUND", ["letters"], lambda: wire.client.get_model_metadata("letters")),
        ("NOT_FOUND", ["letters"], lambda: wire.client.get_model_config("letters")),
        ("INVALID_ARGUMENT", ["newest"], lambda: ask(good(), model_version="newest")),
        ("INVALID_ARGUMENT", ["pixels", "FP64"], lambda: ask([wire.tensor("pixels", data.astype(np.float64), "FP64")])),
        ("INVALID_ARGUMENT", ["image", "pixels"], lambda: ask([wire.tensor("image", data, "FP32")])),
        ("INVALID_ARGUMENT", ["pixels", "dimensions"], lambda: ask([wire.tensor("pixels", data.reshape(1, 64), "FP32")])),
        ("INVALID_ARGUMENT", ["pixels", "bytes"], lambda: ask([wire.tensor("pixels", data, "FP32", [2, 1, 8, 8])])),
        ("INVALID_ARGUMENT", ["pixels", "1 to 4096"], lambda: ask([wire.tensor("pixels", data, "FP32", [1 << 40, 1, 8, 8])])),
        ("INVALID_ARGUMENT", ["probabilities"], lambda: ask(good(), outputs=[wire.module.InferRequestedOutput("probabilities")])),
        ("INVALID_ARGUMENT", ["b", "missing"], lambda: wire.client.infer("pair", [wire.tensor("a", np.zeros((1, 2), np.int64), "INT64")])),
        ("INVALID_ARGUMENT", ["b", "3 samples"], lambda: wire.pair(np.zeros((3, 2), np.int64), np.zeros((2, 2), np.int64))),
    ]
    for code, words, make in rows:
        refused(wire, code, words, make)


def compression(wire):
    plain = wire.digits(rows=40).as_numpy("logits")
    for algorithm in ("gzip", "deflate"):
        if wire.http:
            options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        else:
            options = {"compression_algorithm": algorithm}
        packed = wire.digits(rows=40, **options).as_numpy("logits")
        assert np.allclose(plain, packed, rtol=1e-5, atol=1e-5), algorithm


def parameters(wire):
    wire.digits(timeout=10_000_000, priority=1)


def statistics(wire):
    def read():
        found = wire.answer(wire.client.get_inference_statistics("digits", "2"))["model_stats"][0]
        stats = found["inference_stats"]
        count = lambda name: int(stats.get(name, {}).get("count", 0))
        return [int(found.get("inference_count", 0)), int(found.get("execution_count", 0)), count("success"), count("fail")]

    before = read()
    wire.digits(rows=3)
    refused(wire, "INVALID_ARGUMENT", [], lambda: wire.digits(outputs=[wire.module.InferRequestedOutput("none")]))
    after = read()
    equal("differences", [a - b for a, b in zip(after, before)], [3, 1, 1, 1])


def repository(wire):
    def index():
        entries = wire.answer(wire.client.get_model_repository_index())
        entries = entries if wire.http else entries["models"]
        return {(entry["name"], entry.get("version", "")): entry.get("state", "") for entry in entries}

    equal("index", index(), {("digits", "1"): "READY", ("digits", "2"): "READY", ("pair", "1"): "READY"})
    wire.client.unload_model("pair")
    assert not wire.client.is_model_ready("pair")
    equal("state", index()[("pair", "1")], "UNAVAILABLE")
    refused(wire, "NOT_FOUND", ["pair"], lambda: wire.pair(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64)))
    wire.client.load_model("pair")
    assert wire.client.is_model_ready("pair")
    wire.client.unload_model("letters")
    refused(wire, "INTERNAL", ["letters"], lambda: wire.client.load_model("letters"))


def json_data(wire):
    data = np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8)
    tensor = over_http.InferInput("pixels", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(data, binary_data=False)
    output = over_http.InferRequestedOutput("logits", binary_data=False)
    as_json = wire.client.infer("digits", [tensor], outputs=[output]).as_numpy("logits")
    tensor.set_data_from_numpy(data, binary_data=True)
    binary = wire.client.infer("digits", [tensor]).as_numpy("logits")
    assert np.allclose(as_json, binary, rtol=1e-6), "JSON and bytes differ"


def stream(client):
    replies = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    tensor = over_grpc.InferInput("pixels", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
    for number, model in enumerate(["digits", "letters", "digits"]):
        client.async_stream_infer(model, [tensor], request_id=str(number))
    got = [replies.get(timeout=20) for _ in range(3)]
    client.stop_stream()
    assert got[0][1] is None and got[2][1] is None, got
    equal("ids", [got[0][0].get_response().id, got[2][0].get_response().id], ["0", "2"])
    assert "letters" in str(got[1][1]), got[1]


def typed_contents(address):
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="pair")
        for name, values in (("a", [5, 6]), ("b", [1, 2])):
            tensor = request.inputs.add(name=name, datatype="INT64", shape=[1, 2])
            tensor.contents.int64_contents.extend(values)
        reply = stub.ModelInfer(request)
        equal("sum", list(np.frombuffer(reply.raw_output_contents[0], "<i8")), [6, 8])
        tensor = request.inputs[0]
        tensor.contents.int_contents.append(1)
        request.raw_input_contents.append(b"\0" * 16)
        try:
            stub.ModelInfer(request)
            raise AssertionError("raw and typed together were answered")
        except grpc.RpcError as error:
            equal("code", error.code(), grpc.StatusCode.INVALID_ARGUMENT)


def health(address):
    """`grpc.health.v1` without its package: HealthCheckRequest{service = 1}, HealthCheckResponse{status = 1}."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        name = lambda service: b"\x0a" + bytes([len(service)]) + service
        equal("the server", check(b""), b"\x08\x01")
        equal("inference", check(name(b"inference.GRPCInferenceService")), b"\x08\x01")
        try:
            check(name(b"no.such.Service"))
            raise AssertionError("an unknown service was answered")
        except grpc.RpcError as error:
            equal("code", error.code(), grpc.StatusCode.NOT_FOUND)
        watching = watch(b"")
        equal("first", next(iter(watching)), b"\x08\x01")
        watching.cancel()


def reflection(address):
    """list_services of `grpc.reflection.v1`: field 7 of the request."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        reply = next(iter(ask(iter([b"\x3a\x01*"]))))
        for service in (b"inference.GRPCInferenceService", b"grpc.health.v1.Health"):
            assert service in reply, reply


def metrics(address):
    text = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    for series in (
        'nv_inference_request_success{model="digits",version="2"} ',
        'nv_inference_request_failure{model="digits",version="2",reason="OTHER"} ',
        'nv_inference_request_duration_us{model="pair",version="1"} ',
        'fedge_inference_duration_seconds_bucket{model="digits",version="2",le="+Inf"} ',
    ):
        assert series in text, f"{series} is missing"
    equal("ready", urllib.request.urlopen(f"http://{address}/v2/health/ready").status, 200)
    try:
        urllib.request.urlopen(f"http://{address}/v2/models/digits")
        raise AssertionError("the port of metrics serves models")
    except urllib.error.HTTPError as error:
        equal("status", error.code, 404)


def many_callers(wire_address):
    """32 callers at a time: every answer is its caller's own."""
    client = over_grpc.InferenceServerClient(wire_address)
    wrong = []

    def call(number):
        a = np.full((1, 2), number, np.int64)
        for step in range(20):
            b = np.full((1, 2), step, np.int64)
            reply = Wire(over_grpc, client).pair(a, b)
            if not (reply.as_numpy("sum") == a + b).all():
                wrong.append((number, step))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal("mixed up answers", wrong, [])


def main():
    grpc_address, http_address, metrics_address = sys.argv[1:4]
    checks = Checks()
    clients = [
        ("gRPC", Wire(over_grpc, over_grpc.InferenceServerClient(grpc_address))),
        ("HTTP", Wire(over_http, over_http.InferenceServerClient(http_address))),
    ]
    rows = [
        live_and_ready, metadata, configuration, answers, several_tensors, classification, wrong_requests, compression,
        parameters, statistics, repository,
    ]
    for name, wire in clients:
        for check in rows:
            checks.run(f"{name}: {check.__name__.replace('_', ' ')}", check, wire)
    checks.run("HTTP: data as JSON", json_data, clients[1][1])
    checks.run("gRPC: a stream outlives a wrong request", stream, clients[0][1].client)
    checks.run("gRPC: typed contents", typed_contents, grpc_address)
    checks.run("gRPC: health", health, grpc_address)
    checks.run("gRPC: reflection", reflection, grpc_address)
    checks.run("32 callers", many_callers, grpc_address)
    checks.run("metrics", metrics, metrics_address)
    print(json.dumps({"passed": checks.passed, "failed": checks.failed}))
    return 0 if checks.failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
