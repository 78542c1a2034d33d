"""Writes the float models of the int8 benchmark: MLP, CNN, ResNet-18, MobileNetV2, MobileNetV3-small.

Weights are PyTorch's and torchvision's own random ones with a fixed seed: speed does not depend on them, and nothing is
downloaded. Batch statistics are taken from a few random batches, so that activations have sane ranges.

    python -m venv v && v/bin/pip install torch torchvision onnx onnxscript
    v/bin/python tests/bench/export_models.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small, resnet18


def mlp():
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


MODELS = {
    "mlp": (mlp, (784,)),
    "cnn": (cnn, (1, 28, 28)),
    "resnet18": (resnet18, (3, 224, 224)),
    "mobilenet_v2": (mobilenet_v2, (3, 224, 224)),
    "mobilenet_v3_small": (mobilenet_v3_small, (3, 224, 224)),
}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, shape) in MODELS.items():
        torch.manual_seed(1)
        model = make()
        model.train()
        with torch.no_grad():
            for _ in range(4):
                model(torch.randn(8, *shape))
        model.eval()
        torch.onnx.export(
            model, torch.randn(1, *shape), folder / f"{name}.onnx", input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17, dynamo=False,
        )  # fmt: skip
        print(folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
