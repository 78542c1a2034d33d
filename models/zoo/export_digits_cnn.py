"""Exports the demo's model: a small CNN for 8x8 grey digits, untrained, as PyTorch writes it.

    python -m venv .venv && .venv/bin/pip install torch onnx onnxscript
    .venv/bin/python models/zoo/export_digits_cnn.py

Writes `digits_cnn.onnx` (one file) and `digits_cnn_external.onnx` with its `.data` file beside it (what the exporter
does by default), so that both forms stay tested. Same seed, same PyTorch: same weights.
"""

from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).parent


class DigitsCnn(nn.Module):
    """[N, 1, 8, 8] pixels in 0..1 -> [N, 10] logits; 11,482 parameters."""

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


def main():
    torch.manual_seed(4)
    model = DigitsCnn().eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    for name, external in [("digits_cnn.onnx", False), ("digits_cnn_external.onnx", True)]:
        program = torch.onnx.export(
            model,
            (torch.rand(2, 1, 8, 8),),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes={"pixels": {0: batch}},
            dynamo=True,
        )
        # The exporter records source paths of the machine that ran it; they have no place in a published file.
        for node in program.model.graph:
            node.metadata_props.clear()
        program.save(HERE / name, external_data=external)
    print(sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
