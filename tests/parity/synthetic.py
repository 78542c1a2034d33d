"""Makes the data set Synthetic(a, b) of FedProx's paper and the model that is trained on it (needs numpy; torch, onnx and
onnxscript for the model).

    python tests/parity/synthetic.py FOLDER [--seed 0] [--alpha 1] [--beta 1]     FOLDER/train.npz, FOLDER/test.npz
    python tests/parity/synthetic.py --model                                      models/zoo/logistic_60x10.onnx

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1 and appendix C.1: 30 devices;
n_k = floor(LogNormal(4, 2)) + 50; u_k ~ N(0, alpha), B_k ~ N(0, beta) (standard deviations); W_k (60 x 10) and b_k ~
N(u_k, 1); v_k ~ N(B_k, 1); x ~ N(v_k, diag(j^-1.2)); y = argmax(xW + b); 90 % of each device's samples to train on, 10 %
to test on. The array `node` says whose each sample is: `fedge simulate --node-column node`.
"""

import argparse
from pathlib import Path

import numpy as np

DEVICES, FEATURES, CLASSES = 30, 60, 10
MODEL = Path(__file__).resolve().parents[2] / "models/zoo/logistic_60x10.onnx"


def devices(seed, alpha, beta):
    random = np.random.default_rng(seed)
    scale = np.sqrt(np.arange(1, FEATURES + 1) ** -1.2)
    for _ in range(DEVICES):
        samples = int(random.lognormal(4, 2)) + 50
        shift, centre = random.normal(0, alpha), random.normal(0, beta)
        weights, bias = random.normal(shift, 1, (FEATURES, CLASSES)), random.normal(shift, 1, CLASSES)
        mean = random.normal(centre, 1, FEATURES)
        x = random.normal(mean, scale, (samples, FEATURES)).astype(np.float32)
        yield x, np.argmax(x @ weights + bias, axis=1).astype(np.uint8)


def make(folder, seed, alpha, beta):
    parts = {"train": [], "test": []}
    for device, (x, y) in enumerate(devices(seed, alpha, beta)):
        cut = int(0.9 * len(x))
        parts["train"].append((x[:cut], y[:cut], np.full(cut, device, np.uint8)))
        parts["test"].append((x[cut:], y[cut:], np.full(len(x) - cut, device, np.uint8)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        x, y, node = (np.concatenate(column) for column in zip(*rows))
        np.savez(folder / f"{name}.npz", x=x, y=y, node=node)
        print(name, len(x), "samples of", DEVICES, "devices")


def export():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, CLASSES)).eval()
    torch.nn.init.xavier_uniform_(model[0].weight)
    torch.nn.init.zeros_(model[0].bias)
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.onnx.export(
        model,
        (torch.rand(2, FEATURES),),
        input_names=["features"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: batch}},
        dynamo=True,
    )
    # The exporter records source paths of the machine that ran it; they have no place in a published file.
    for node in program.model.graph:
        node.metadata_props.clear()
    program.save(MODEL, external_data=False)
    print(MODEL.name, MODEL.stat().st_size, "bytes")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--model", action="store_true")
    arguments = parser.parse_args()
    if arguments.model:
        export()
    if arguments.folder:
        make(arguments.folder, arguments.seed, arguments.alpha, arguments.beta)


if __name__ == "__main__":
    main()
