"""Makes `untrainable.onnx`: a sound model with an operator (Sign, node "sign") that training lacks.

    python models/zoo/make_untrainable.py      (needs the package onnx)
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def main():
    weight = numpy_helper.from_array(np.linspace(-1, 1, 40, dtype=np.float32).reshape(4, 10), "weight")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="product"),
        helper.make_node("Sign", ["product"], ["y"], name="sign"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "untrainable", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, Path(__file__).parent / "untrainable.onnx")


if __name__ == "__main__":
    main()
