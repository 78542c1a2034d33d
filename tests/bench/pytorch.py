"""One training step in fedge and in PyTorch: the same ONNX file's network, batch, optimizer and number of threads, alternating.

    python tests/bench/pytorch.py --fedge target/release/fedge [--only mlp,cnn] [--threads 1] [--rounds 3] [--device gpu] [--json]

Each side runs in a process of its own. A step's time is the difference of two runs of different length, so that starting, loading and
compiling count for neither side; the best of the rounds is taken. `--device gpu` compares a fedge that was built with `--features wgpu`
with PyTorch on CUDA, over ten times the steps. Memory is the process's peak (VmHWM, looked at every 5 ms: Linux).
Needs torch, torchvision, onnx and numpy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Name: input of one sample, batch, steps of the short and of the long run.
MODELS = {
    "mlp": ((784,), 32, 50, 1050),
    "cnn": ((1, 28, 28), 32, 5, 165),
    "resnet18": ((3, 32, 32), 32, 2, 22),
    "mobilenet_v2": ((3, 96, 96), 16, 2, 14),
}
CLASSES = 10
RATE, MOMENTUM = 0.01, 0.9


def network(name):
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, CLASSES),
        )
    model = getattr(torchvision.models, name)(num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            # Both sides draw differently.
            module.p = 0.0
    return model


def samples(name, steps):
    shape, batch, _, _ = MODELS[name]
    random = np.random.default_rng(0)
    return random.normal(size=(batch * steps, *shape)).astype("f4"), random.integers(0, CLASSES, batch * steps)


def export(name, path):
    import torch

    model = network(name).eval()
    x = torch.zeros(2, *MODELS[name][0])
    torch.onnx.export(
        model, (x,), path, dynamo=False, input_names=["x"], output_names=["y"], opset_version=17,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )


def torch_steps(name, steps, threads, device):
    """In a process of its own: seconds of so many steps."""
    import torch

    torch.set_num_threads(threads)
    device = torch.device("cuda" if device == "gpu" else "cpu")
    model = network(name).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    loss = torch.nn.CrossEntropyLoss()
    batch = MODELS[name][1]
    x, y = (torch.from_numpy(values) for values in samples(name, steps))
    started = time.perf_counter()
    for step in range(steps):
        rows = slice(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        loss(model(x[rows].to(device)), y[rows].to(device)).backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(command):
    """Standard output and peak memory in MB of a command that must succeed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    peak = 0
    while process.poll() is None:
        # Not ru_maxrss: it begins with the memory of whoever started the process.
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        peak = max([peak, *map(int, found)])
        time.sleep(0.005)
    if process.returncode != 0:
        sys.exit(f"{command}: status {process.returncode}")
    return process.stdout.read(), peak * 1024 / 1e6


def fedge_seconds(fedge, folder, name, steps, threads, device):
    x, y = samples(name, steps)
    data, task = folder / "data.npz", folder / "task.toml"
    np.savez(data, x=x, y=y.astype("i8"))
    task.write_text(
        f'model = "m"\n[training]\nepochs = 1\nbatch_size = {MODELS[name][1]}\nlearning_rate = {RATE}\nmomentum = {MOMENTUM}\n'
    )
    output, peak = measured(
        [fedge, "model", "train", str(folder / f"{name}.onnx"), "--data", str(data), "--task", str(task),
         "--out", str(folder / "out.onnx"), "--threads", str(threads), "--device", device, "--json"]
    )
    return json.loads(output)["seconds"], peak


def torch_seconds(name, steps, threads, device):
    output, peak = measured([sys.executable, __file__, "--torch", f"{name},{steps},{threads},{device}"])
    return float(output), peak


def compare(fedge, folder, name, threads, rounds, device):
    subprocess.run([sys.executable, __file__, "--export", f"{name},{folder / name}.onnx"], check=True, capture_output=True)
    _, batch, short, long = MODELS[name]
    if device == "gpu":
        short, long = 10 * short, 10 * long
    sides = {
        "fedge": lambda steps: fedge_seconds(fedge, folder, name, steps, threads, device),
        "torch": lambda steps: torch_seconds(name, steps, threads, device),
    }
    times, peaks = {side: [] for side in sides}, {side: 0.0 for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            # The short run's peak: of the long one the samples are most.
            (first, peak), (last, _) = run(short), run(long)
            times[side].append((last - first) / (long - short))
            peaks[side] = max(peaks[side], peak)
    best = {side: 1000 * min(found) for side, found in times.items()}
    return {
        "model": name, "batch": batch, "threads": threads, "device": device,
        "fedge_ms": best["fedge"], "torch_ms": best["torch"], "ratio": best["fedge"] / best["torch"],
        "fedge_mb": peaks["fedge"], "torch_mb": peaks["torch"], "memory_ratio": peaks["fedge"] / peaks["torch"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fedge")
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--torch", help=argparse.SUPPRESS)
    parser.add_argument("--export", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        export(*arguments.export.split(",", 1))
        return
    if arguments.torch:
        name, steps, threads, device = arguments.torch.split(",")
        print(torch_steps(name, int(steps), int(threads), device))
        return
    if not arguments.fedge:
        parser.error("--fedge says which program is measured")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only.split(","):
            found = compare(arguments.fedge, Path(folder), name, arguments.threads, arguments.rounds, arguments.device)
            if arguments.json:
                print(json.dumps(found), flush=True)
            else:
                print(
                    "{model:13} batch {batch}, {threads} thread(s): fedge {fedge_ms:.3g} ms, PyTorch {torch_ms:.3g} ms, ratio {ratio:.2f};"
                    " peak {fedge_mb:.0f} MB, {torch_mb:.0f} MB, ratio {memory_ratio:.2f}".format(**found),
                    flush=True,
                )


if __name__ == "__main__":
    main()
