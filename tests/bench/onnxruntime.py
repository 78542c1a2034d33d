"""int8 against ONNX Runtime: quantizes the float models in every form and times both on the same files and inputs.

    python -m venv v && v/bin/pip install onnx onnxruntime numpy sympy
    v/bin/python tests/bench/onnxruntime.py quantize FOLDER            # *.onnx of export_models.py
    v/bin/python tests/bench/onnxruntime.py compare FOLDER [PATTERN]   # outputs, on random inputs
    v/bin/python tests/bench/onnxruntime.py time FOLDER [PATTERN]      # one thread, interleaved, ratios

`fedge` is taken from $FEDGE or target/release/fedge. Times are medians of each side's runs, which alternate, so that a
machine that is busy for a while slows both. ONNX Runtime's u8 x s8 kernels for AVX2 saturate sums of products at 16 bits;
`compare` therefore also runs it with session.x64quantprecision = 1, where it is exact.
"""

import json
import os
import subprocess
import sys
import tempfile
import time as clock
from pathlib import Path

sys.path.pop(0)  # this folder, whose onnxruntime.py is this file

import numpy  # noqa: E402
import onnxruntime  # noqa: E402
from onnxruntime.quantization import (  # noqa: E402
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: E402

FEDGE = os.environ.get("FEDGE", "target/release/fedge")
SHAPES = {"mlp": (784,), "cnn": (1, 28, 28)}
TYPES = {"u8s8": (QuantType.QUInt8, QuantType.QInt8), "s8s8": (QuantType.QInt8, QuantType.QInt8)}


def shape(file):
    return SHAPES.get(file.name.split(".")[0], (3, 224, 224))


def inputs(file, count, seed=0):
    return numpy.random.default_rng(seed).normal(size=(count, *shape(file))).astype(numpy.float32)


class Reader(CalibrationDataReader):
    def __init__(self, file):
        self.rows = iter(numpy.split(inputs(file, 16, seed=9), 16))

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def quantize(folder):
    for file in sorted(folder.glob("*.onnx")):
        if file.name.count(".") > 1:
            continue
        # Folds constants and shared initializers, which the QOperator form needs.
        ready = folder / f"{file.stem}.ready"
        quant_pre_process(file, ready, skip_symbolic_shape=True)
        for form, kind in (("qdq", QuantFormat.QDQ), ("qop", QuantFormat.QOperator)):
            for channels in ("tensor", "channel"):
                for name, (activation, weight) in TYPES.items():
                    out = folder / f"{file.stem}.{form}.{channels}.{name}.onnx"
                    quantize_static(
                        ready, out, Reader(file), quant_format=kind, per_channel=channels == "channel",
                        activation_type=activation, weight_type=weight,
                    )  # fmt: skip
                    print(out, flush=True)
        quantize_dynamic(ready, folder / f"{file.stem}.dynamic.onnx", weight_type=QuantType.QInt8)


def session(file, exact=False, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def ours(*arguments):
    done = subprocess.run([FEDGE, "model", *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def chosen(folder, arguments):
    pattern = arguments[0] if arguments else "*.*.onnx"
    return [file for file in sorted(folder.glob(pattern)) if file.name.count(".") > 1]


def compare(folder, arguments):
    count = int(os.environ.get("COUNT", "32"))
    for file in chosen(folder, arguments):
        rows = inputs(file, count, seed=3)
        with tempfile.TemporaryDirectory() as scratch:
            source, result = Path(scratch, "in.npz"), Path(scratch, "out.npz")
            numpy.savez(source, x=rows)
            try:
                ours("run", str(file), "--input", str(source), "--output", str(result))
            except RuntimeError as error:
                print(f"{file.name:45} FAILS: {error}", flush=True)
                continue
            found = numpy.load(result)["y"]
        words = []
        for name, exact in (("default", False), ("exact", True)):
            try:
                expected = session(file, exact).run(None, {"x": rows})[0]
            except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
                words.append(f"{name}: ONNX Runtime cannot load it")
                continue
            step = numpy.diff(numpy.unique(expected))
            step = step[step > 1e-6].min() if (step > 1e-6).any() else 1.0
            agree = (expected.argmax(1) == found.argmax(1)).mean()
            steps = numpy.abs(expected - found) / step
            words.append(f"{name}: argmax {agree:7.2%}, steps mean {steps.mean():.3f} max {steps.max():.1f}")
        print(f"{file.name:45} {'; '.join(words)}", flush=True)


def milliseconds(run, seconds):
    """Median wall time and mean processor time of this thread, in ms a run."""
    run()
    walls, start, end = [], clock.thread_time(), clock.perf_counter() + seconds
    while len(walls) < 3 or (clock.perf_counter() < end and len(walls) < 20000):
        before = clock.perf_counter()
        run()
        walls.append(clock.perf_counter() - before)
    return float(numpy.median(walls)) * 1e3, (clock.thread_time() - start) / len(walls) * 1e3


def time(folder, arguments):
    rounds, seconds = int(os.environ.get("ROUNDS", "3")), os.environ.get("SECONDS", "0.7")
    stock = "STOCK" in os.environ
    print(f"{'file':43} batch | wall ms: ours, ORT, ratio | CPU ms: ours, ORT, ratio" + (" | stock tract CPU ms" if stock else ""))
    for file in chosen(folder, arguments):
        for batch in (1, 32):
            theirs, rows = session(file), inputs(file, batch)
            bench = ["bench", str(file), "--batch", str(batch), "--threads", "1", "--seconds", seconds]
            mine, other, tract = [], [], []
            for _ in range(rounds):
                report = ours(*bench)
                mine.append((report["p50_ms"], report["cpu_ms"]))
                other.append(milliseconds(lambda: theirs.run(None, {"x": rows}), float(seconds)))
                if stock:
                    tract.append(ours(*bench, "--stock")["cpu_ms"])
            # The best round of each side: what disturbs only adds.
            (wall, cpu), (their_wall, their_cpu) = (tuple(map(min, zip(*side))) for side in (mine, other))
            line = f"{file.name:43} {batch:5} | {wall:9.4f} {their_wall:9.4f} {wall / their_wall:6.2f}"
            line += f" | {cpu:9.4f} {their_cpu:9.4f} {cpu / their_cpu:6.2f}"
            print(line + (f" | {min(tract):9.3f}" if stock else ""), flush=True)


if __name__ == "__main__":
    actions = {"quantize": lambda folder, _: quantize(folder), "compare": compare, "time": time}
    actions[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
