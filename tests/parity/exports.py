"""Models as people export them, by PyTorch's old and new exporter, and their gradients in PyTorch and in fedge.

    python tests/parity/exports.py --fedge target/release/fedge [--only resnet18,unet] [--exporter old,new] [--json out.json]

For each model and exporter: the ONNX file is written, `fedge model check` must call it served and trainable, and
`fedge model gradients` computes the gradients of one batch in float32 and in float64. PyTorch computes the same in float64, in
training mode (batch statistics, no dropout). A parameter passes where
max |difference| <= 1e-4 * max(max |g| of it, 0.01 * max |g| of all); ratios to that are printed. PyTorch's own float32 gradients are
compared with its float64 ones beside it: where they miss the tolerance, the batch is too small for the network's normalizations
in float32, and float64 decides. Initializers that the exporter renamed or transposed are
matched by their values; those that match nothing (such as a BatchNormalization folded into its convolution) are named.

Needs torch, torchvision, onnx, onnxscript and numpy. Weights are random with a fixed seed; sizes are reduced where it says so.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.fx.experimental.optimization
import torchvision
from torch import nn

TOLERANCE = 1e-4


class Tagger(nn.Module):
    """Token ids to a class for each token, by a bidirectional LSTM."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.lstm(self.table(x))[0])


class Gru(nn.Module):
    """A signal to a class, by a GRU of two layers."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


class Encoder(nn.Module):
    """A small BERT: token ids to a class."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 32)
        self.places = nn.Embedding(16, 32)
        self.norm = nn.LayerNorm(32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pool = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        places = torch.arange(16)
        h = self.norm(self.words(x) + self.places(places)[None])
        return self.head(torch.tanh(self.pool(self.encoder(h)[:, 0])))


class Unet(nn.Module):
    """Segmentation: one level by transposed convolution, one by bilinear upsampling."""

    def __init__(self):
        super().__init__()

        def block(a, b):
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU()
            )

        self.down1, self.down2, self.bottom = block(3, 8), block(8, 16), block(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 1))
        self.side2, self.side1 = block(32, 16), block(16, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        c = self.bottom(nn.functional.max_pool2d(b, 2))
        b = self.side2(torch.cat([self.up2(c), b], 1))
        a = self.side1(torch.cat([self.up1(b), a], 1))
        return self.head(a)


def signal_cnn():
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, stride=2, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 3, dilation=2, groups=2), nn.GELU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16 * 6, 6),
    )  # fmt: skip


def vision_transformer():
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )


def zoo(name, size, batch):
    return (lambda: getattr(torchvision.models, name)(num_classes=10), lambda r: r.normal(size=(batch, 3, size, size)), 10, ())


def tokens(words, length):
    return lambda r: r.integers(0, words, size=(4, length))


# name: model, batch, classes, shape of a sample's labels
MODELS = {
    "resnet18": zoo("resnet18", 64, 4),
    "resnet50": zoo("resnet50", 64, 4),
    "mobilenet_v2": zoo("mobilenet_v2", 64, 4),
    "mobilenet_v3_small": zoo("mobilenet_v3_small", 64, 4),
    "densenet121": zoo("densenet121", 64, 4),
    "convnext_tiny": zoo("convnext_tiny", 64, 2),
    "vit_small": (vision_transformer, lambda r: r.normal(size=(4, 3, 32, 32)), 10, ()),
    "lstm_tagger": (Tagger, tokens(40, 9), 5, (9,)),
    "gru": (Gru, lambda r: r.normal(size=(4, 7, 6)), 4, ()),
    "bert_small": (Encoder, tokens(60, 16), 3, ()),
    "unet": (Unet, lambda r: r.normal(size=(2, 3, 24, 32)), 4, (24, 32)),
    "cnn_1d": (signal_cnn, lambda r: r.normal(size=(4, 4, 64)), 6, ()),
}


# Models whose BatchNormalization follows a Conv.
FOLDED = {"resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "densenet121", "unet", "cnn_1d"}


def export(model, x, path, exporter):
    """Writes the ONNX file. The new exporter folds a BatchNormalization behind a Conv into it."""
    model.eval()
    if exporter == "new":
        torch.onnx.export(
            model, (x,), path, dynamo=True, input_names=["x"], output_names=["y"], external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},), verbose=False,
        )  # fmt: skip
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["x"], output_names=["y"], opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )  # fmt: skip


def reference(model, x, y, precision):
    """Gradients by name in training mode, in this precision; integers stay integers."""
    model = copy.deepcopy(model).to(precision).train()
    x = torch.from_numpy(x)
    x = x.to(precision) if x.is_floating_point() else x
    for module in model.modules():
        if isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
    output = model(x)
    labels = torch.from_numpy(y)
    if output.dim() == 3:
        output = output.transpose(1, 2)
    loss = nn.functional.cross_entropy(output, labels)
    loss.backward()
    return loss.item(), {name: (p.detach().numpy(), p.grad.numpy()) for name, p in model.named_parameters() if p.grad is not None}


def match(name, values, parameters):
    """The reference gradient of an initializer, in its own layout."""
    if name in parameters and parameters[name][0].shape == values.shape:
        return parameters[name][1]
    for weight, gradient in parameters.values():
        for turn in (lambda a: a, lambda a: a.T):
            if turn(weight).shape == values.shape and np.array_equal(turn(weight).astype(np.float32), values):
                return turn(gradient)
    return recurrent(values, parameters)


def recurrent(values, parameters):
    """PyTorch's LSTM and GRU weights in ONNX's order of gates, one direction behind the other."""
    for gates in ([0, 3, 1, 2], [1, 0, 2]):
        for kinds in (["weight_ih"], ["weight_hh"], ["bias_ih", "bias_hh"]):
            names = [name for name in parameters if kinds[0] + "_l" in name]
            for name in names:
                found = []
                for index in (0, 1):
                    rows = []
                    directions = [name] if values.shape[0] == 1 else [name, name + "_reverse"]
                    for direction in directions:
                        for kind in kinds:
                            part = parameters.get(direction.replace(kinds[0], kind))
                            if part is None or part[index].shape[0] % len(gates):
                                break
                            blocks = np.split(part[index], len(gates))
                            rows.append(np.concatenate([blocks[g] for g in gates]))
                    found.append(np.stack(rows) if rows and len({r.shape for r in rows}) == 1 else np.zeros(0))
                weight, gradient = found
                if weight.size == values.size and np.array_equal(weight.reshape(values.shape).astype(np.float32), values):
                    return gradient.reshape(values.shape)
    return None


def perturb(model):
    """Makes all weights and statistics differ: the old exporter shares initializers whose values are equal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def compare(path, found, parameters):
    """Worst ratio to the tolerance, and the initializers that match nothing."""
    graph = onnx.load(path).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    overall = max(np.abs(g).max() for _, g in parameters.values())
    worst, unmatched = (0.0, ""), []
    for name in found.files:
        expected = match(name, values[name], parameters)
        if expected is None:
            unmatched.append(name)
            continue
        difference = np.abs(found[name].astype(np.float64) - expected).max()
        allowed = TOLERANCE * max(np.abs(expected).max(), 0.01 * overall)
        worst = max(worst, (float(difference / allowed), name))
    return worst, unmatched, len(found.files)


def own_error(single, double):
    """How far PyTorch's own float32 gradients are from its float64 ones, in tolerances."""
    overall = max(np.abs(g).max() for _, g in double.values())
    ratios = [
        np.abs(single[name][1] - g).max() / (TOLERANCE * max(np.abs(g).max(), 0.01 * overall)) for name, (_, g) in double.items()
    ]
    return float(max(ratios))


def run(fedge, name, exporter, folder):
    make, batch, classes, label_shape = MODELS[name]
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x = batch(random)
    x = x.astype(np.float32) if x.dtype == np.float64 else x
    y = random.integers(0, classes, size=(len(x), *label_shape))
    model = make()
    perturb(model)
    if exporter == "new" and name in FOLDED:
        # What the exporter does anyway; done in PyTorch first, so that both sides hold the same parameters.
        model = torch.fx.experimental.optimization.fuse(model.eval()).requires_grad_(True)
    path, data = folder / f"{name}-{exporter}.onnx", folder / f"{name}.npz"
    np.savez(data, x=x, y=y)
    result = {"model": name, "exporter": exporter}
    try:
        export(model, torch.from_numpy(x), str(path), exporter)
    except Exception as error:  # the exporter's own failure is a result too
        return {**result, "failed": f"export: {type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    check = subprocess.run([fedge, "model", "check", path, "--json"], capture_output=True, text=True)
    if check.returncode:
        return {**result, "failed": f"check: {(check.stderr or check.stdout)[:600]}"}
    result["operators"] = sorted({node.op_type for node in onnx.load(path).graph.node})
    loss, parameters = reference(model, x, y, torch.float64)
    result["pytorch_float32"] = own_error(reference(model, x, y, torch.float32)[1], parameters)
    for precision, flags in (("float32", []), ("float64", ["--double"])):
        out = folder / f"{name}-{exporter}-{precision}.npz"
        command = [fedge, "model", "gradients", path, "--data", data, "--out", out, "--json", *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return {**result, "failed": f"gradients: {done.stderr[:600]}"}
        result[f"loss_{precision}"] = abs(json.loads(done.stdout)["loss"] - loss)
        worst, unmatched, count = compare(path, np.load(out), parameters)
        result[precision] = {"worst_ratio": worst[0], "worst_parameter": worst[1]}
        result["parameters"], result["unmatched"] = count, unmatched
    result["passed"] = {p: result[p]["worst_ratio"] <= 1.0 for p in ("float32", "float64")}
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fedge", required=True)
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--exporter", default="old,new")
    parser.add_argument("--json")
    parser.add_argument("--keep", help="folder for the files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    scratch = tempfile.TemporaryDirectory()
    folder = Path(arguments.keep or scratch.name)
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for name in arguments.only.split(","):
        for exporter in arguments.exporter.split(","):
            result = run(str(Path(arguments.fedge).resolve()), name, exporter, folder)
            results.append(result)
            if "failed" in result:
                print(f"{name:20} {exporter}  FAILED {result['failed']}", flush=True)
                continue
            ratios = "  ".join(f"{p} {result[p]['worst_ratio']:.2e} ({result[p]['worst_parameter']})" for p in ("float32", "float64"))
            print(f"{name:20} {exporter}  {result['parameters']} parameters, {len(result['unmatched'])} unmatched  {ratios}  PyTorch float32 {result['pytorch_float32']:.2e}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))
    bad = [r for r in results if "failed" in r or not r["passed"]["float64"]]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
