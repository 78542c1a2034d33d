"""FedAvg and FedProx written independently in PyTorch, on the split that `fedge simulate` exported (needs torch, onnx, numpy).

    fedge simulate TASK.toml --model models/zoo/mnist_cnn.onnx --data MNIST --test-last 2000 --scale 0.00392156862745098 \\
        --nodes 10 --split dirichlet:0.5 --seed 1 --held-out 0 --export-splits splits.json
    python tests/parity/fedavg_mnist.py MNIST splits.json [--mu 0.01] [--seed 0]

MNIST is the folder with one pair of IDX files. Starts from the weights in models/zoo/mnist_cnn.onnx. Local training: 10
epochs of SGD, batch 64, learning rate 0.01, momentum 0.9; with --mu, FedProx's proximal term. Prints the accuracy on the
split's test part after each round; compare with the column `accuracy` of `fedge simulate`.
"""

import argparse
import copy
import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from export_mnist_cnn import FILE, MnistCnn  # noqa: E402

EPOCHS, BATCH, RATE, MOMENTUM = 10, 64, 0.01, 0.9


def idx(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, 4)
    return torch.tensor(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def train(model, start, x, y, mu, generator):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
            if mu:
                distance = sum(((w - w0) ** 2).sum() for w, w0 in zip(model.parameters(), start))
                loss = loss + mu / 2 * distance
            loss.backward()
            optimizer.step()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mnist", type=Path)
    parser.add_argument("splits", type=Path)
    parser.add_argument("--mu", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = idx(next(arguments.mnist.glob("*images*"))).float().unsqueeze(1) / 255
    labels = idx(next(arguments.mnist.glob("*labels*"))).long()
    splits = json.loads(arguments.splits.read_text())
    nodes = [torch.tensor(node["train"]) for node in splits["nodes"]]
    test = torch.tensor(splits["test"])

    model = MnistCnn()
    published = onnx.load(FILE).graph.initializer
    model.load_state_dict({t.name: torch.tensor(numpy_helper.to_array(t).copy()) for t in published if t.data_type == 1})
    generator = torch.Generator().manual_seed(arguments.seed)
    total = sum(len(rows) for rows in nodes)
    started = time.monotonic()
    for round_number in range(1, arguments.rounds + 1):
        mean = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        start = [w.detach().clone() for w in model.parameters()]
        for rows in nodes:
            local = copy.deepcopy(model)
            train(local, start, images[rows], labels[rows], arguments.mu, generator)
            for name, value in local.state_dict().items():
                mean[name] += value * (len(rows) / total)
        model.load_state_dict(mean)
        with torch.no_grad():
            accuracy = float((model(images[test]).argmax(1) == labels[test]).float().mean())
        print(f"{round_number:>3}  {accuracy:.2%}  {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
