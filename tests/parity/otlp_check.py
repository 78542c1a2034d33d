"""Takes a node's traces as an OpenTelemetry collector does, by the stock `opentelemetry-proto`, and looks at them.

    .venv/bin/python tests/parity/otlp_check.py COLLECTOR_HOST:PORT GRPC_HOST:PORT HTTP_HOST:PORT

The node serves `digits` and sends the spans of those requests alone whose `traceparent` asks for it. A line a check; the
exit status is 0 where all hold.
"""

import json
import sys
import time
import urllib.error
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import tritonclient.grpc as triton
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from tritonclient.utils import InferenceServerException

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
STAGES = {"queue", "compute_input", "compute_infer", "compute_output"}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self):
        self.spans = []
        self.resource = {}

    def Export(self, request, context):
        for group in request.resource_spans:
            self.resource = {a.key: a.value.string_value for a in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, count):
        deadline = time.monotonic() + 20
        while len(self.spans) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.spans


def pixels(values):
    tensor = triton.InferInput("pixels", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return [tensor]


def attributes(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def check(name, holds, found):
    print(f"{'ok     ' if holds else 'FAILED '} {name}{'' if holds else f': {found}'}")
    return holds


def main():
    collector_address, grpc_address, http_address = sys.argv[1:4]
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(collector_address)
    server.start()

    client = triton.InferenceServerClient(grpc_address)
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "order-65"}
    sample = np.zeros((2, 1, 8, 8), np.float32)
    client.infer("digits", pixels(sample))  # not traced: nobody asked for it
    client.infer("digits", pixels(sample), headers=traced)
    refused = None
    try:
        client.infer("digits", pixels(sample[:, :, :4]), headers={**traced, "x-request-id": "order-66"})
    except InferenceServerException as error:
        refused = error
    body = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}]}
    ask = urllib.request.Request(f"http://{http_address}/v2/models/digits/infer", json.dumps(body).encode(), traced)
    with urllib.request.urlopen(ask) as reply:
        echoed = reply.headers["x-request-id"]

    spans = collector.wait_for(11)
    by_name = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    rpcs = by_name.get("inference.GRPCInferenceService/ModelInfer", [])
    posts = by_name.get("POST /v2/models/{model}/infer", [])
    results = [
        check("the refused request was refused", refused is not None, refused),
        check("the HTTP reply echoes its request id", echoed == "order-65", echoed),
        check("two RPCs and a POST are traced, no more", (len(rpcs), len(posts)) == (2, 1), sorted(by_name)),
        check("with four stages each where they ran", all(len(by_name.get(s, [])) == 2 for s in STAGES), sorted(by_name)),
        check("all in the caller's trace", {s.trace_id.hex() for s in spans} == {TRACE}, spans),
        check("below the caller's span", {s.parent_span_id.hex() for s in rpcs + posts} == {PARENT}, rpcs),
        check("as a server's", {s.kind for s in rpcs + posts} == {2}, rpcs),
        check("service.name", collector.resource.get("service.name") == "fedge-node", collector.resource),
    ]
    answered = [attributes(s) for s in rpcs if attributes(s)["rpc.grpc.status_code"] == 0]
    expected = {"rpc.system": "grpc", "rpc.method": "ModelInfer", "fedge.model.name": "digits", "fedge.batch.rows": 2}
    results.append(check("attributes", answered and expected.items() <= answered[0].items(), answered))
    parents = {s.span_id for s in rpcs + posts}
    stages = [span for name in STAGES for span in by_name.get(name, [])]
    results.append(check("stages are children", {s.parent_span_id for s in stages} <= parents, stages))
    within = all(
        parent.start_time_unix_nano - 2_000_000 <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        for stage in stages for parent in rpcs + posts if parent.span_id == stage.parent_span_id
    )
    results.append(check("and lie within them", within, stages))
    server.stop(None)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
