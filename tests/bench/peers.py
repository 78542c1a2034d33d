"""Serves the models of `fedge-bench-serve --write-models DIR` with another server, ONNX Runtime on one thread inside.

    python -m venv .peers && .peers/bin/pip install nvidia-pytriton onnxruntime numpy     # or: mlserver onnxruntime numpy
    .peers/bin/python tests/bench/peers.py triton DIR          # gRPC on 127.0.0.1:19001
    .peers/bin/python tests/bench/peers.py mlserver DIR        # gRPC on 127.0.0.1:19001

Prints the process id to give to `fedge-bench-serve --target 127.0.0.1:19001 --pid PID`, and serves until it is ended.
"""

import os
import pathlib
import sys
import tempfile

import numpy as np
import onnxruntime

PORTS = {"grpc": 19001, "http": 19000, "metrics": 19002}


def session(folder, name):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(pathlib.Path(folder) / name / "1" / "model.onnx"), options)


def triton(folder):
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    config = TritonConfig(http_port=PORTS["http"], grpc_port=PORTS["grpc"], metrics_port=PORTS["metrics"], log_verbose=0)
    with Triton(config=config) as server:
        for name in ("mlp", "cnn"):
            run = session(folder, name)
            given, gives = run.get_inputs()[0], run.get_outputs()[0]

            @batch
            def infer(_run=run, _gives=gives.name, **inputs):
                return {_gives: _run.run([_gives], inputs)[0]}

            server.bind(
                model_name=name,
                infer_func=infer,
                inputs=[Tensor(name=given.name, dtype=np.float32, shape=tuple(given.shape[1:]))],
                outputs=[Tensor(name=gives.name, dtype=np.float32, shape=tuple(gives.shape[1:]))],
                config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            )
        print(os.getpid(), flush=True)
        server.serve()


def mlserver(folder):
    import asyncio

    from mlserver import MLModel, MLServer, Settings
    from mlserver.codecs import NumpyCodec
    from mlserver.settings import ModelParameters, ModelSettings
    from mlserver.types import InferenceResponse

    class Onnx(MLModel):
        async def load(self):
            self.run = session(self.settings.parameters.uri, self.name)
            self.gives = self.run.get_outputs()[0].name
            return True

        async def predict(self, payload):
            data = {tensor.name: NumpyCodec.decode_input(tensor).astype(np.float32) for tensor in payload.inputs}
            output = NumpyCodec.encode_output(self.gives, self.run.run([self.gives], data)[0])
            return InferenceResponse(model_name=self.name, outputs=[output])

    # Without workers the models run in this process: the least that it can cost.
    settings = Settings(
        host="127.0.0.1", http_port=PORTS["http"], grpc_port=PORTS["grpc"], metrics_port=PORTS["metrics"],
        parallel_workers=0, metrics_dir=tempfile.mkdtemp(),
    )
    models = [
        ModelSettings(name=name, implementation=Onnx, parameters=ModelParameters(uri=str(folder)))
        for name in ("mlp", "cnn")
    ]
    print(os.getpid(), flush=True)
    asyncio.run(MLServer(settings).start(models))


if __name__ == "__main__":
    {"triton": triton, "mlserver": mlserver}[sys.argv[1]](sys.argv[2])
