"""Whole models with real data: the benchmark's CNN, trained on MNIST, int8 in ONNX Runtime and in fedge.

    v/bin/python tests/parity/int8_mnist.py train MNIST FOLDER      # needs torch, onnx, numpy
    w/bin/python tests/parity/int8_mnist.py compare FOLDER          # needs onnxruntime, onnx, sympy, numpy

MNIST is the folder with t10k's IDX files: 8,000 pictures train, 2,000 test. `compare` quantizes the trained model in every form of
onnxruntime.quantization, runs each file in ONNX Runtime (as it comes, and with session.x64quantprecision = 1, where its
u8 x s8 kernels do not saturate) and in `fedge model run` ($FEDGE or target/release/fedge), and prints accuracies and how
often the greatest output is the same.
"""

import gzip
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TRAIN = 8000


def idx(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def train(mnist, folder):
    import torch
    from torch import nn

    torch.manual_seed(1)
    x = idx(next(mnist.glob("*images*"))).astype(np.float32)[:, None] / 255
    y = idx(next(mnist.glob("*labels*"))).astype(np.int64)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(3):
        for rows in torch.randperm(TRAIN).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.tensor(x)[rows]), torch.tensor(y)[rows])
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    torch.onnx.export(
        model, torch.tensor(x[:1]), folder / "cnn.onnx", input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    np.savez(folder / "data.npz", calibration=x[:200], x=x[TRAIN:], y=y[TRAIN:])


def compare(folder):
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    logging.disable(logging.WARNING)
    data = np.load(folder / "data.npz")

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(data["calibration"])

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    def theirs(file, exact):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(file, options).run(None, {"x": data["x"]})[0]
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
            return None

    def ours(file):
        with tempfile.TemporaryDirectory() as scratch:
            source, result = Path(scratch, "in.npz"), Path(scratch, "out.npz")
            np.savez(source, x=data["x"])
            fedge = os.environ.get("FEDGE", "target/release/fedge")
            subprocess.run([fedge, "model", "run", file, "--input", source, "--output", result], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
            return np.load(result)["y"]

    def right(output):
        return f"{(output.argmax(1) == data['y']).mean():7.2%}"

    files = []
    for form, kind in (("qdq", QuantFormat.QDQ), ("qop", QuantFormat.QOperator)):
        for channels in (False, True):
            for types, activation in (("u8s8", QuantType.QUInt8), ("s8s8", QuantType.QInt8)):
                files.append(folder / f"cnn.{form}.{'channel' if channels else 'tensor'}.{types}.onnx")
                quantize_static(folder / "cnn.onnx", files[-1], Reader(), quant_format=kind, per_channel=channels,
                                activation_type=activation, weight_type=QuantType.QInt8)  # fmt: skip
    files.append(folder / "cnn.dynamic.onnx")
    quantize_dynamic(folder / "cnn.onnx", files[-1], weight_type=QuantType.QInt8)
    print(f"float in ONNX Runtime {right(theirs(folder / 'cnn.onnx', False))}, in fedge {right(ours(folder / 'cnn.onnx'))}")
    for file in files:
        mine = ours(file)
        line = f"{file.name:26} fedge {right(mine)}"
        for name, exact in (("as it comes", False), ("exact", True)):
            other = theirs(file, exact)
            if other is None:
                line += f" | ONNX Runtime, {name}: cannot load it"
                continue
            same = (mine.argmax(1) == other.argmax(1)).mean()
            line += f" | ONNX Runtime, {name}: {right(other)}, same class {same:7.2%}"
        print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        compare(Path(sys.argv[2]))
