"""ONNX's own backend node tests against the trainer's forward pass, for every operator that the catalogue trains.

    python tests/parity/onnx_backend.py --fedge target/release/fedge [--only Conv,LSTM] [--verbose]

The PyPI package `onnx` generates the tests: one node, its inputs, the expected outputs. fedge takes one float input and one
float output whose first axis is the batch, so a test's first input becomes a batch of one (squeezed, and cast where it is no
float, inside the graph), the others become initializers, and each output is a case of its own (cast and unsqueezed). `fedge model evaluate --outputs` then runs the trainer's interpreter (evaluation mode);
a case passes where every number is within 1e-5 + 1e-4 |expected|. `fedge model check` says beside it whether tract loads the
same file for serving.

Cases that cannot be put so, and refusals that the catalogue states, are counted under the reasons below and printed; any other
refusal or difference fails.
"""

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto
from onnx.backend.test.case.node import collect_testcases

ROOT = Path(__file__).resolve().parents[2]

# Why a test is left out: a pattern of its name, and what it asks for that training does not have. `model check` refuses each.
LEFT_OUT = [
    (r"float16|bfloat16|FLOAT16|BFLOAT16|float8|FLOAT8|FLOAT4|float4|E4M3|E5M2|E8M0", "half, quarter and eighth precision"),
    (r"DOUBLE|double", "double precision"),
    (r"(uint|UINT|int|INT)(2|4|8|16|32|64)", "integers as data"),
    (r"STRING|string", "text"),
    (r"training", "training mode written into the file"),
    (r"_3d|3d_|ncdhw", "three spatial axes"),
    (r"cubic|crop_and_resize|antialias|not_larger|not_smaller", "cubic, cropping, antialiased and aspect-keeping resizing"),
    (r"(lstm|gru)_reverse", "recurrences that run backwards alone: refused, since tract would run them forwards"),
    (r"peepholes|batchwise|seq_length|sequence_lens", "recurrent variants that no exporter writes"),
    (r"storage_order|column_major|with_argmax", "indices of maxima"),
    (r"einsum_.*(ellipsis|diagonal)|einsum_batch_diagonal|einsum_inner_prod", "Einsum with dots, repeats, or a scalar"),
    (r"dilations|dilated", "dilated AveragePool"),
    (r"mvn|center_crop_pad|affine_grid|_expanded", "functions written out in other operators"),
    (r"test_mod_.*(float|mixed_sign_float)|mod_broadcast|range_float", "Mod and Range on data"),
    (r"reduce_(max|min)_bool", "extremes of truth values"),
    (r"dropout_default_mask.*#1", "a mask as output"),
    (r"layer_normalization.*#[12]", "statistics of a LayerNormalization as outputs"),
    (r"averagepool_2d_ceil_last_window_starts_on_pad", "expected numbers that are written with four digits"),
    (r"resize_downsample_scales_linear_align_corners", "aligned corners of a fractional size; fedge rounds it, as ONNX Runtime"),
    (r"empty|zero_size|split_zero|_0d_|noop_with_empty|no_data", "tensors without elements"),
]

# Types that a graph's data may have; all but float32 are cast inside the graph.
DATA = [np.dtype(kind) for kind in ("float32", "int64", "int32", "bool")]
# What a test is wrapped in.
WRAPPERS = {"Squeeze", "Unsqueeze", "Cast"}
# Operators whose inputs are sizes.
SIZED = {"ConstantOfShape", "Range"}


def trained_operators():
    table = (ROOT / "models/src/operators/table.rs").read_text()
    return set(re.findall(r'trained\("(\w+)"', table))


def cases(operators):
    """Yields (test's name, output's index, model, input, expected), or (name, None, reason, None, None)."""
    for test in collect_testcases(None):
        graph = test.model.graph
        if len(graph.node) != 1 or graph.node[0].op_type not in operators or graph.node[0].domain not in ("", "ai.onnx"):
            continue
        yield from split(test, graph)


def split(test, graph):
    """Puts a test as fedge takes it: a batch of one, as a graph with one float input and one float output."""
    inputs, outputs = test.data_sets[0]
    if any(not isinstance(value, np.ndarray) and not np.isscalar(value) for value in [*inputs, *outputs]):
        yield test.name, None, "sequences and optionals", None, None
        return
    # Einsum's tests, and a few others, are written in float64.
    single = lambda a: a.astype(np.float32) if a.dtype == np.float64 else a
    arrays = [single(np.asarray(value)) for value in inputs]
    # Sizes must be known when a graph is compiled, so they stay initializers and the graph's input is not used.
    fits = [] if graph.node[0].op_type in SIZED else [i for i, a in enumerate(arrays) if a.dtype in DATA and a.ndim and a.size]
    fits.sort(key=lambda i: arrays[i].dtype != np.float32)
    place = fits[0] if fits else None
    x = np.zeros((1, 1), np.float32) if place is None else arrays[place][None].astype(np.float32)
    for index, expected in enumerate(outputs):
        expected = single(np.asarray(expected))
        if expected.dtype not in DATA:
            yield test.name, None, "an output of another type than float32, int64, int32 and bool", None, None
            continue
        if expected.size == 0:
            yield test.name, None, "tensors without elements", None, None
            continue
        model = onnx.ModelProto()
        model.CopyFrom(test.model)
        for imported in model.opset_import:
            # Older sets than fedge reads; the operators that such tests have did not change up to this one.
            imported.version = max(imported.version, 13)
        g = model.graph
        del g.input[:], g.output[:]
        names = [value.name for value in graph.input]
        before = []
        g.input.append(onnx.helper.make_tensor_value_info("fedge_x", TensorProto.FLOAT, x.shape))
        for i, (name, array) in enumerate(zip(names, arrays)):
            if i != place:
                g.initializer.append(onnx.numpy_helper.from_array(array, name))
                continue
            before.append(node("Squeeze", ["fedge_x"], "fedge_s", 0, g))
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            before.append(onnx.helper.make_node("Cast", ["fedge_s"], [name], to=kind))
        after = [
            onnx.helper.make_node("Cast", [graph.output[index].name], ["fedge_c"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["fedge_c"], "fedge_y", 0, g),
        ]
        nodes = [*before, *g.node, *after]
        del g.node[:]
        g.node.extend(nodes)
        g.output.append(onnx.helper.make_tensor_value_info("fedge_y", TensorProto.FLOAT, (1, *expected.shape)))
        yield test.name, index, model, x, expected[None].astype(np.float32)


def node(operator, inputs, output, axis, graph):
    """Squeeze or Unsqueeze of one axis."""
    name = f"fedge_axis_{output}"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis], np.int64), name))
    return onnx.helper.make_node(operator, [*inputs, name], [output])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fedge", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    fedge = str(Path(arguments.fedge).resolve())
    operators = trained_operators()
    if arguments.only:
        operators &= set(arguments.only.split(","))
    passed, left, failed, unserved = collections.Counter(), collections.Counter(), [], collections.Counter()
    skipped = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path, data, out = (Path(folder) / name for name in ("m.onnx", "x.npz", "o.npz"))
        for name, index, model, x, expected in cases(operators):
            reason = next((why for pattern, why in LEFT_OUT if re.search(pattern, f"{name}#{index}")), None)
            if index is None or reason:
                left[reason or model] += 1
                skipped[reason or model].append(name)
                continue
            operator = next(n.op_type for n in model.graph.node if not any("fedge_" in v for v in [*n.input, *n.output]) or n.op_type not in WRAPPERS)
            onnx.save(model, path)
            np.savez(data, x=x)
            command = [fedge, "model", "evaluate", path, "--data", data, "--outputs", out]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failed.append((name, done.stderr.strip()[:300]))
                continue
            found = np.load(out)
            found = found[found.files[0]]
            if found.shape != expected.shape:
                failed.append((name, f"shape {found.shape}, expected {expected.shape}"))
            elif not np.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
                failed.append((name, f"differs by {np.nanmax(np.abs(found - expected)):.2e}"))
            else:
                passed[operator] += 1
                check = subprocess.run([fedge, "model", "check", path], capture_output=True, text=True)
                if "can't be served" in check.stderr:
                    unserved[f"{name}: {check.stderr.strip()[-160:]}"] += 1
    for name, problem in failed:
        print(f"FAILED {name}: {problem}")
    for reason, count in left.most_common():
        print(f"left out {count:4}  {reason}" + (f": {', '.join(skipped[reason])}" if arguments.verbose else ""))
    for line in unserved:
        print(f"trained, but not served: {line}")
    missing = sorted(operators - set(passed))
    print(f"{sum(passed.values())} passed over {len(passed)} operators, {len(failed)} failed, {sum(left.values())} left out")
    print(f"operators without a case that passed: {', '.join(missing) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
