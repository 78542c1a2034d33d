"""Federated averaging written independently in PyTorch, on the very split of a demo's folder.

    fedge demo --seed 3 --dir DEMO && python tests/parity/fedavg.py DEMO      (needs torch, onnx, numpy)

Three nodes' digits are read from DEMO/node-*/digits.csv; what none of them has is the test part. Prints the accuracy after
each round, with the same model, plan and held-out rule as the demo (a tenth of a node's digits, by the SHA-256 of their
pixels, is not trained on), and with all of a node's digits. Compare with the demo's column `float`.
"""

import copy
import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "models/zoo"))
from export_digits_cnn import DigitsCnn  # noqa: E402

ROUNDS, EPOCHS, BATCH, RATE, MOMENTUM = 10, 5, 32, 0.05, 0.9


def read(path):
    return [tuple(map(float, line.split(","))) for line in path.read_text().split()[1:]]


def is_held_out(row):
    digest = hashlib.sha256(np.array(row[:64], "<f4").tobytes()).digest()
    return int.from_bytes(digest[:2], "big") < 6554


def tensors(rows):
    rows = np.array(rows, np.float32)
    return torch.tensor(rows[:, :64].reshape(-1, 1, 8, 8) / 16), torch.tensor(rows[:, 64].astype(int))


def federated_averaging(nodes, test):
    model = DigitsCnn()
    published = onnx.load(ROOT / "models/zoo/digits_cnn.onnx").graph.initializer
    model.load_state_dict({t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in published if t.data_type == 1})
    for _ in range(ROUNDS):
        total = sum(len(x) for x, _ in nodes)
        mean = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        for x, y in nodes:
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=RATE, momentum=MOMENTUM)
            for _ in range(EPOCHS):
                for batch in torch.randperm(len(x)).split(BATCH):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(local(x[batch]), y[batch]).backward()
                    optimizer.step()
            for name, value in local.state_dict().items():
                mean[name] += value * (len(x) / total)
        model.load_state_dict(mean)
        with torch.no_grad():
            yield float((model(test[0]).argmax(1) == test[1]).float().mean())


def main():
    demo = Path(sys.argv[1])
    torch.manual_seed(0)
    left = Counter(read(ROOT / "models/zoo/digits.csv"))
    nodes = [read(path) for path in sorted(demo.glob("node-*/digits.csv"))]
    for rows in nodes:
        left.subtract(rows)
    test = tensors(list(left.elements()))
    for name, keep in [("as the demo", lambda row: not is_held_out(row)), ("all digits", lambda row: True)]:
        parts = [tensors([row for row in rows if keep(row)]) for rows in nodes]
        print(name, " ".join(f"{accuracy:.1%}" for accuracy in federated_averaging(parts, test)))


if __name__ == "__main__":
    main()
