"""Writes the numbers that the trainer is compared with: gradients and SGD steps of the demo's model, from PyTorch.

    python -m venv .venv && .venv/bin/pip install torch onnx numpy
    .venv/bin/python tests/parity/gradients.py

Loads the weights of `models/zoo/digits_cnn.onnx` into the same network in PyTorch, takes 32 seeded real digits of
`models/zoo/digits.csv` (pixels / 16) and computes, all in float64:

- `loss` and `gradient/<parameter>`: mean cross-entropy and its gradients;
- `sgd/<parameter>`: the parameters after 3 steps of torch.optim.SGD on that batch (see SGD below);
- `prox/<parameter>`: the same with FedProx's term mu/2 * ||w - w0||^2 added to the loss.

Writes `node/src/training/fixtures/digits_cnn.npz` (arrays as float32, the batch's rows of the file as `rows`).
"""

from pathlib import Path

import numpy
import onnx
import torch
from onnx import numpy_helper
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
PROXIMAL_MU = 0.1
STEPS = 3


class DigitsCnn(nn.Module):
    """As in models/zoo/export_digits_cnn.py."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(32 * 2 * 2, 48)
        self.fc2 = nn.Linear(48, 10)

    def forward(self, pixels):
        x = self.pool(torch.relu(self.conv1(pixels)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


def load_model():
    model = DigitsCnn().double()
    parameters = dict(model.named_parameters())
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).astype(numpy.float64))
        for tensor in onnx.load(ROOT / "models/zoo/digits_cnn.onnx").graph.initializer
        if tensor.name in parameters
    }
    model.load_state_dict(weights, strict=True)
    return model


def steps(batch, labels, proximal_mu):
    model = load_model()
    start = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch), labels)
        for parameter, initial in zip(model.parameters(), start):
            loss = loss + proximal_mu / 2 * (parameter - initial).square().sum()
        loss.backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def main():
    table = numpy.loadtxt(ROOT / "models/zoo/digits.csv", delimiter=",", skiprows=1)
    rows = numpy.sort(numpy.random.default_rng(11).choice(len(table), 32, replace=False))
    batch = torch.from_numpy(table[rows, :64] / 16.0).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[rows, 64].astype(numpy.int64))

    model = load_model()
    loss = nn.functional.cross_entropy(model(batch), labels)
    loss.backward()

    arrays = {"rows": rows.astype(numpy.int64), "loss": numpy.array([loss.item()], dtype=numpy.float64)}
    for name, parameter in model.named_parameters():
        arrays[f"gradient/{name}"] = parameter.grad.numpy().astype(numpy.float32)
    for prefix, proximal_mu in [("sgd", 0.0), ("prox", PROXIMAL_MU)]:
        for name, parameter in steps(batch, labels, proximal_mu).items():
            arrays[f"{prefix}/{name}"] = parameter.numpy().astype(numpy.float32)
    path = ROOT / "node/src/training/fixtures/digits_cnn.npz"
    path.parent.mkdir(exist_ok=True)
    numpy.savez(path, **arrays)
    print(path.relative_to(ROOT), path.stat().st_size, "bytes; loss", loss.item())


if __name__ == "__main__":
    main()
