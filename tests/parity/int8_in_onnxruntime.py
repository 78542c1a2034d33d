"""Makes the fixtures that hold our int8 models against ONNX Runtime's answers.

    python -m venv .venv && .venv/bin/pip install torch onnx onnxscript onnxruntime numpy
    cargo build --release -p fedge-models --example quantize
    .venv/bin/python tests/parity/int8_in_onnxruntime.py

Made with torch 2.15, onnxruntime 1.32, numpy 2. Into models/tests/fixtures/ it writes, for each of two models,
`NAME.onnx` (float), `NAME.int8.onnx` (what our quantizer made of it) and `NAME.npz`: `calibration`, `inputs`, `float`
and `int8`, the last two being ONNX Runtime's outputs for `inputs`. The models:

- `digits_cnn_trained`: models/zoo/digits_cnn.onnx with weights trained here on models/zoo/digits.csv (seeded, without the
  64 inputs), calibrated on 50 samples of the classes 0, 1 and 7 alone.
- `residual`: random weights, with what the digits model lacks: BatchNormalization, a residual Add, Concat, Clip,
  AveragePool, GlobalAveragePool, a depthwise convolution and a MatMul with its bias as an Add.

It fails where ONNX Runtime does not fuse the digits model into integer kernels, or int8 answers differ from float.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "models" / "tests" / "fixtures"
QUANTIZE = ROOT / "target" / "release" / "examples" / "quantize"
sys.path.insert(0, str(ROOT / "models" / "zoo"))

from export_digits_cnn import DigitsCnn  # noqa: E402


class Residual(nn.Module):
    """[N, 3, 8, 8] -> [N, 5]."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=8)
        self.pool = nn.AvgPool2d(2)
        self.matrix = nn.Parameter(torch.randn(16, 5) * 0.5)
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(x)))
        a = nn.functional.relu6(self.depthwise(x))
        x = torch.cat([a, self.pool(x)], 1)
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        return torch.flatten(x, 1) @ self.matrix + self.shift


def trained_digits(path):
    """Trains on all digits but the first 64, writes the model, and gives calibration samples and inputs."""
    table = np.loadtxt(ROOT / "models/zoo/digits.csv", delimiter=",", skiprows=1, dtype=np.float32)
    x, y = (table[:, :64] / 16).reshape(-1, 1, 8, 8), table[:, 64].astype(np.int64)
    torch.manual_seed(7)
    module = DigitsCnn()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(20):
        order = 64 + np.random.default_rng(epoch).permutation(len(x) - 64)
        for batch in np.array_split(order, len(order) // 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(torch.from_numpy(x[batch])), torch.from_numpy(y[batch])).backward()
            optimizer.step()
    model = onnx.load(ROOT / "models/zoo/digits_cnn.onnx")
    values = module.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.raw_data = values[tensor.name].numpy().astype("<f4").tobytes()
    onnx.save(model, path)
    few = np.flatnonzero(np.isin(y, [0, 1, 7]))
    return x[few[few >= 64][:50]], x[:64]


def exported_residual(path):
    torch.manual_seed(3)
    module = Residual()
    with torch.no_grad():
        for norm in (module.norm1, module.norm2):
            for values in (norm.weight, norm.running_var):
                values.uniform_(0.5, 2.0)
            for values in (norm.bias, norm.running_mean):
                values.uniform_(-0.5, 0.5)
    torch.onnx.export(
        module.eval(), (torch.rand(2, 3, 8, 8),), str(path), input_names=["image"], output_names=["scores"],
        dynamic_axes={"image": {0: "batch"}}, opset_version=17, dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    random = np.random.default_rng(5)
    draw = lambda count: random.normal(size=(count, 3, 8, 8)).astype(np.float32)  # noqa: E731
    return draw(24), draw(16)


def run(path, inputs, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name, make in [("digits_cnn_trained", trained_digits), ("residual", exported_residual)]:
        source, int8 = FIXTURES / f"{name}.onnx", FIXTURES / f"{name}.int8.onnx"
        calibration, inputs = make(source)
        with tempfile.TemporaryDirectory() as scratch:
            samples, optimized = Path(scratch) / "samples.npy", Path(scratch) / "optimized.onnx"
            np.save(samples, calibration)
            subprocess.run([QUANTIZE, source, samples, int8], check=True, stdout=subprocess.DEVNULL)
            onnx.checker.check_model(onnx.load(int8), full_check=True)
            want, got = run(source, inputs), run(int8, inputs, optimized)
            operators = [node.op_type for node in onnx.load(optimized).graph.node]
        agreement = (want.argmax(1) == got.argmax(1)).mean()
        print(name, f"agreement {agreement:.3f}", f"largest difference {np.abs(want - got).max():.4f}", operators)
        # ONNX Runtime turns MatMul and Add into a float Gemm before it looks for pairs, hence the exception.
        in_float = {"Conv", "MatMul"} | ({"Gemm"} if name.startswith("digits") else set())
        assert agreement >= 0.95 and not in_float & set(operators), operators
        np.savez(FIXTURES / f"{name}.npz", calibration=calibration, inputs=inputs, float=want, int8=got)


if __name__ == "__main__":
    main()
