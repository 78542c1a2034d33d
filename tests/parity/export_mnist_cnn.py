"""Exports NIID-Bench's CNN for MNIST, untrained, with a seeded initialisation (needs torch, onnx, onnxscript).

    python tests/parity/export_mnist_cnn.py             writes models/zoo/mnist_cnn.onnx

Two 5x5 convolutions of 6 and 16 channels, each with ReLU and 2x2 pooling, then 256 -> 120 -> 84 -> 10 (Li, Diao, Chen, He,
"Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, section V). Same seed, same PyTorch: same
weights.
"""

from pathlib import Path

import torch
from torch import nn

FILE = Path(__file__).resolve().parents[2] / "models/zoo/mnist_cnn.onnx"


class MnistCnn(nn.Module):
    """[N, 1, 28, 28] pixels in 0..1 -> [N, 10] logits; 44,426 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, pixels):
        x = self.pool(torch.relu(self.conv1(pixels)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(torch.flatten(x, 1)))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


def main():
    torch.manual_seed(0)
    model = MnistCnn().eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        model,
        (torch.rand(2, 1, 28, 28),),
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes={"pixels": {0: batch}},
        dynamo=True,
    )
    # The exporter records source paths of the machine that ran it; they have no place in a published file.
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(FILE, external_data=False)
    print(FILE.name, FILE.stat().st_size, "bytes,", sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
