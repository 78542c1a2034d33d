"""Serves the models of `fedge-bench-serve --write-models DIR` with another server, ONNX Runtime on one thread inside.

    python -m venv .peers && .peers/bin/pip install nvidia-pytriton onnxruntime numpy     # or: mlserver onnxruntime numpy
    .peers/bin/python tests/bench/peers.py triton DIR          # gRPC on 127.0.0.1:19001
    .peers/bin/python tests/bench/peers.py mlserver DIR 19010  # gRPC on 127.0.0.1:19011

Prints the process id to give to `fedge-bench-serve --target 127.0.0.1:19001 --pid PID`, and serves until it is ended.
"""

import os
import pathlib
import shutil
import sys
import sysconfig
import tempfile
import types

# `onnxruntime.py` lies beside this file, and would be found before the package of that name.
sys.path = [folder for folder in sys.path if pathlib.Path(folder or ".").resolve() != pathlib.Path(__file__).parent.resolve()]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

FIRST_PORT = int(sys.argv[3]) if len(sys.argv) > 3 else 19000
PORTS = {"http": FIRST_PORT, "grpc": FIRST_PORT + 1, "metrics": FIRST_PORT + 2}


def session(folder, name):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(pathlib.Path(folder) / name / "1" / "model.onnx"), options)


MODEL = """
import sys

sys.path[:0] = {libraries!r}
import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, arguments):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.run = onnxruntime.InferenceSession("{path}", options)

    def execute(self, requests):
        inputs = [utils.get_input_tensor_by_name(request, "{given}").as_numpy() for request in requests]
        outputs = self.run.run(["{gives}"], {{"{given}": np.concatenate(inputs)}})[0]
        replies, start = [], 0
        for rows in map(len, inputs):
            tensor = utils.Tensor("{gives}", outputs[start : start + rows])
            replies.append(utils.InferenceResponse(output_tensors=[tensor]))
            start += rows
        return replies
"""

CONFIG = """
backend: "python"
max_batch_size: 64
input [ {{ name: "{given}" data_type: TYPE_FP32 dims: {given_dims} }} ]
output [ {{ name: "{gives}" data_type: TYPE_FP32 dims: {gives_dims} }} ]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""


def triton(folder):
    """The server of nvidia-pytriton with plain Python models: pytriton's own proxy between them would cost more."""
    import pytriton

    server = pathlib.Path(pytriton.__file__).parent / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    work = pathlib.Path(tempfile.mkdtemp())
    backends = work / "backends"
    shutil.copytree(server / "backends", backends)
    shutil.copy(server / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    for name in ("mlp", "cnn"):
        run = session(folder, name)
        given, gives = run.get_inputs()[0], run.get_outputs()[0]
        words = {
            "libraries": [path for path in sys.path if path.endswith("site-packages")],
            "path": pathlib.Path(folder).resolve() / name / "1" / "model.onnx",
            "given": given.name, "given_dims": list(given.shape[1:]), "gives": gives.name, "gives_dims": list(gives.shape[1:]),
        }
        version_folder = work / "models" / name / "1"
        version_folder.mkdir(parents=True)
        (version_folder / "model.py").write_text(MODEL.format(**words))
        (work / "models" / name / "config.pbtxt").write_text(CONFIG.format(**words))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([sysconfig.get_config_var("LIBDIR"), str(server.parent.parent / "nvidia_pytriton.libs")]),
    }
    arguments = [
        str(server / "bin" / "tritonserver"), "--model-repository", str(work / "models"),
        "--backend-directory", str(backends), "--grpc-port", str(PORTS["grpc"]), "--http-port", str(PORTS["http"]),
        "--metrics-port", str(PORTS["metrics"]), "--log-error=true", "--log-info=false",
    ]
    print(os.getpid(), flush=True)
    os.execve(arguments[0], arguments, environment)


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

    # Models are found by a path of modules.
    sys.modules["peers_models"] = types.ModuleType("peers_models")
    sys.modules["peers_models"].Onnx = Onnx
    # Without workers the models run in this process: the least that it can cost.
    settings = Settings(
        host="127.0.0.1", http_port=PORTS["http"], grpc_port=PORTS["grpc"], metrics_port=PORTS["metrics"],
        parallel_workers=0, metrics_dir=tempfile.mkdtemp(),
    )
    models = [
        ModelSettings(name=name, implementation="peers_models.Onnx", parameters=ModelParameters(uri=str(folder)))
        for name in ("mlp", "cnn")
    ]
    print(os.getpid(), flush=True)
    asyncio.run(MLServer(settings).start(models))


if __name__ == "__main__":
    {"triton": triton, "mlserver": mlserver}[sys.argv[1]](sys.argv[2])
