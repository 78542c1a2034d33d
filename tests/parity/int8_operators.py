"""Makes the fixture that holds each lowered int8 operator, in each form, against ONNX Runtime's answers.

    python -m venv v && v/bin/pip install onnx onnxruntime numpy sympy
    v/bin/python tests/parity/int8_operators.py

Into node/src/inference/fixtures/int8_operators.npz it writes, for each case, `CASE.model` (the quantized ONNX file), `CASE.x`,
`CASE.y` (ONNX Runtime's output) and `CASE.step` (one quantization step of the output). A case is OPERATOR.FORM.CHANNELS.TYPES.
Made with onnxruntime 1.32 and session.x64quantprecision = 1: without it, on CPUs without VNNI, its u8 x s8 kernels saturate sums
of products at 16 bits and are wrong by many steps. Files that it cannot load with that option run without.
"""

import logging
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

OUT = Path(__file__).resolve().parents[2] / "node" / "src" / "inference" / "fixtures" / "int8_operators.npz"
IMAGE, ROW = (6, 5, 7), (20,)
random = np.random.default_rng(1)


def weights(name, *shape):
    return numpy_helper.from_array(random.normal(size=shape).astype(np.float32) * 0.4, name)


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f"{operator}_{inputs[0]}_{outputs[0]}", **attributes)


def conv(outputs, channels=6, group=1, kernel=(3, 3), **attributes):
    w, b = weights("w", outputs, channels // group, *kernel), weights("b", outputs)
    return [node("Conv", ["x", "w", "b"], ["y"], group=group, kernel_shape=kernel, **attributes)], [w, b]


def conv_then(*nodes, extra=()):
    made, tensors = conv(8, pads=[1] * 4)
    made[0].output[0] = "h"
    return [*made, *nodes], [*tensors, *extra]


def squeeze_and_excite():
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Conv", ["p", "w", "b"], ["c"]),
        node("HardSigmoid", ["c"], ["s"], alpha=1 / 6, beta=0.5),
        node("Mul", ["x", "s"], ["y"]),
    ]
    return nodes, [weights("w", 6, 6, 1, 1), weights("b", 6)]


def concat():
    nodes = [
        node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4),
        node("Relu", ["h"], ["r"]),
        node("Concat", ["x", "r"], ["y"], axis=1),
    ]
    return nodes, [weights("w", 5, 6, 3, 3), weights("b", 5)]


def pool(operator, **attributes):
    return conv_then(node(operator, ["h"], ["y"], **attributes))


def moved(*nodes, extra=()):
    return conv_then(*nodes, extra=extra)


CASES = {
    "conv": (IMAGE, conv(8, pads=[1] * 4)),
    "conv_1x1": (IMAGE, conv(20, kernel=(1, 1))),
    "conv_strided_padded": (IMAGE, conv(5, strides=[2, 3], pads=[0, 2, 1, 1])),
    "conv_dilated": (IMAGE, conv(5, dilations=[2, 2], pads=[2] * 4)),
    "conv_same_upper": (IMAGE, conv(5, strides=[2, 2], auto_pad="SAME_UPPER")),
    "conv_grouped": (IMAGE, conv(9, group=3, pads=[1] * 4)),
    "conv_depthwise": (IMAGE, conv(6, group=6, pads=[1] * 4)),
    "conv_depthwise_5x5": ((18, 7, 8), conv(18, 18, group=18, kernel=(5, 5), strides=[2, 2], pads=[2] * 4)),
    "conv_winograd": ((16, 13, 12), conv(17, 16, pads=[1] * 4)),
    "conv_1d": ((6, 15), conv(7, kernel=(3,), pads=[1, 1])),
    "conv_relu": (IMAGE, conv_then(node("Relu", ["h"], ["y"]))),
    "conv_clip": (
        IMAGE,
        conv_then(
            node("Clip", ["h", "low", "high"], ["y"]),
            extra=[numpy_helper.from_array(np.float32(v), n) for n, v in (("low", 0), ("high", 1.5))],
        ),
    ),
    "gemm": (ROW, ([node("Gemm", ["x", "w", "b"], ["y"], transB=1)], [weights("w", 17, 20), weights("b", 17)])),
    "gemm_plain": (ROW, ([node("Gemm", ["x", "w", "b"], ["y"])], [weights("w", 20, 17), weights("b", 17)])),
    "matmul": (ROW, ([node("MatMul", ["x", "w"], ["y"])], [weights("w", 20, 17)])),
    "matmul_rows": ((5, 12), ([node("MatMul", ["x", "w"], ["y"])], [weights("w", 12, 9)])),
    "add": (IMAGE, ([node("Conv", ["x", "w", "b"], ["h"], pads=[1] * 4), node("Add", ["h", "x"], ["y"])],
                        [weights("w", 6, 6, 3, 3), weights("b", 6)])),
    "mul": (IMAGE, squeeze_and_excite()),
    "concat": (IMAGE, concat()),
    "max_pool": (IMAGE, pool("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)),
    "average_pool": (IMAGE, pool("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)),
    "average_pool_padded": (IMAGE, pool("AveragePool", kernel_shape=[2, 3], pads=[1, 1, 0, 1], count_include_pad=1)),
    "global_average_pool": (IMAGE, pool("GlobalAveragePool")),
    "flatten_gemm": (
        IMAGE,
        moved(node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "v", "c"], ["y"]),
              extra=[weights("v", 280, 10), weights("c", 10)]),
    ),
    "reshape": (IMAGE, moved(node("Reshape", ["h", "shape"], ["y"]), extra=[ints("shape", 0, 14, -1)])),
    "transpose": (IMAGE, moved(node("Transpose", ["h"], ["y"], perm=[0, 3, 1, 2]))),
    "softmax": (ROW, ([node("Gemm", ["x", "w"], ["h"]), node("Softmax", ["h"], ["y"], axis=1)], [weights("w", 20, 7)])),
    "sigmoid": (IMAGE, moved(node("Sigmoid", ["h"], ["y"]))),
    "hard_swish": (IMAGE, moved(node("HardSwish", ["h"], ["s"]), node("Conv", ["s", "v"], ["y"]), extra=[weights("v", 4, 8, 1, 1)])),
    "leaky_relu": (IMAGE, moved(node("LeakyRelu", ["h"], ["y"], alpha=0.1))),
}  # fmt: skip


class Reader(CalibrationDataReader):
    def __init__(self, shape):
        generator = np.random.default_rng(2)
        self.rows = iter([generator.normal(size=(1, *shape)).astype(np.float32) for _ in range(20)])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def answer(file, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(file, options)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        session = onnxruntime.InferenceSession(file)
    return session.run(None, {"x": x})[0]


def step_of(model, y):
    """Scale of the last DequantizeLinear; of a float result a ten-thousandth of its reach."""
    last = next((n for n in model.graph.node if "y" in n.output), None)
    scales = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if last is not None and last.op_type == "DequantizeLinear":
        return np.float32(scales[last.input[1]].max())
    return np.float32(np.abs(y).max() * 1e-4)


def main():
    logging.disable(logging.WARNING)
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        for name, (shape, (nodes, tensors)) in CASES.items():
            x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
            y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
            graph = helper.make_graph(nodes, name, [x], [y], tensors)
            model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), source)
            for form, kind in (("qdq", QuantFormat.QDQ), ("qop", QuantFormat.QOperator)):
                for channels in (False, True):
                    for types in ("u8s8", "s8s8"):
                        # All eight forms for what has weights, four for the rest.
                        if not name.startswith(("conv", "gemm", "matmul")) and channels == (types == "s8s8"):
                            continue
                        activation = QuantType.QUInt8 if types[0] == "u" else QuantType.QInt8
                        quantize_static(source, target, Reader(shape), quant_format=kind, per_channel=channels,
                                        activation_type=activation, weight_type=QuantType.QInt8)  # fmt: skip
                        case = f"{name}.{form}.{'channel' if channels else 'tensor'}.{types}"
                        inputs = np.random.default_rng(3).normal(size=(2, *shape)).astype(np.float32)
                        try:
                            expected = answer(target, inputs)
                        except Exception as error:  # noqa: BLE001
                            print(f"{case}: ONNX Runtime itself: {str(error).splitlines()[0][:150]}")
                            continue
                        stored = onnx.load(target)
                        del stored.graph.value_info[:]
                        arrays[f"{case}.model"] = np.frombuffer(stored.SerializeToString(), np.uint8)
                        arrays[f"{case}.x"], arrays[f"{case}.y"] = inputs, expected
                        arrays[f"{case}.step"] = np.array([step_of(stored, expected)], np.float32)
    OUT.parent.mkdir(exist_ok=True)
    np.savez(OUT, **arrays)
    print(f"{len(arrays) // 4} cases, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
