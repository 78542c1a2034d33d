"""One server step of each strategy, written from its paper in numpy alone, float64, with the nodes' models in full.

    python tests/parity/strategies.py > coordinator/src/aggregate/strategies/fixtures/steps.json

Nothing is rearranged as the coordinator does it: models instead of deltas, every node's control variate, FedNova's
vectors a_i with momentum and proximal term as the paper prints them. Three nodes, three rounds, 14 values of which 3 are a
statistic.
"""

import json
import sys

import numpy as np

f32 = lambda x: np.asarray(x, np.float32).astype(np.float64)

TENSORS = [("w", 6, "trainable"), ("clip", 2, "constant"), ("mean", 3, "statistic"), ("b", 5, "trainable")]
STATISTIC = slice(6, 9)
ROUNDS = 3


class Node:
    def __init__(self, examples, steps, loss, staleness):
        self.examples, self.steps, self.loss, self.staleness = examples, steps, float(f32(loss)), staleness


class Plan:
    def __init__(self, learning_rate=0.05, momentum=0.0, mu=0.0):
        self.learning_rate, self.momentum, self.mu = (float(f32(x)) for x in (learning_rate, momentum, mu))


def fedavg(x, ys, nodes, plan, memory, o):
    """McMahan et al. 2017, algorithm 1: the server's last line."""
    n = sum(k.examples for k in nodes)
    return sum(k.examples / n * y for k, y in zip(nodes, ys))


def fedavgm(x, ys, nodes, plan, memory, o):
    """Hsu et al. 2019: v <- beta v + dw, w <- w - v (here w - eta v)."""
    n = sum(k.examples for k in nodes)
    dw = sum(k.examples / n * (x - y) for k, y in zip(nodes, ys))
    v = memory.get("v", np.zeros_like(x))
    memory["v"] = v = o["momentum"] * v + dw
    memory["told"] = {"momentum": -v}  # the coordinator keeps v with the sign of a step
    return x - o["server_learning_rate"] * v


def adaptive(rule):
    """Reddi et al. 2021, algorithm 2, lines 10 to 15, the mean weighted by examples."""

    def step(x, ys, nodes, plan, memory, o):
        n = sum(k.examples for k in nodes)
        delta = sum(k.examples / n * (y - x) for k, y in zip(nodes, ys))
        m = memory.get("m", np.zeros_like(x))
        v = memory.get("v", np.full_like(x, o["tau"] ** 2))
        m = o["beta1"] * m + (1 - o["beta1"]) * delta
        v = rule(v, delta, o)
        memory["m"], memory["v"] = m, v
        memory["told"] = {"momentum": m, "variance": v}
        return x + o["server_learning_rate"] * m / (np.sqrt(v) + o["tau"])

    return step


fedadagrad = adaptive(lambda v, d, o: v + d**2)
fedadam = adaptive(lambda v, d, o: o["beta2"] * v + (1 - o["beta2"]) * d**2)
fedyogi = adaptive(lambda v, d, o: v - (1 - o["beta2"]) * d**2 * np.sign(v - d**2))


def fednova(x, ys, nodes, plan, memory, o):
    """Wang et al. 2020: d_i = G_i a_i / |a_i|_1, x <- x - tau_eff sum p_i eta d_i, tau_eff = sum p_i |a_i|_1."""
    eta, rho, alpha = plan.learning_rate, plan.momentum, plan.learning_rate * plan.mu
    n = sum(k.examples for k in nodes)
    tau_eff, direction = 0.0, np.zeros_like(x)
    for k, y in zip(nodes, ys):
        t = np.arange(1, k.steps + 1)
        if rho:
            assert not alpha
            a = (1 - rho ** (k.steps - t + 1)) / (1 - rho)
        else:
            a = (1 - alpha) ** (k.steps - t)
        g_times_a = -(y - x) / eta
        d = g_times_a / np.abs(a).sum()
        tau_eff += k.examples / n * np.abs(a).sum()
        direction += k.examples / n * eta * d
    return x - tau_eff * direction


def scaffold(x, ys, nodes, plan, memory, o):
    """Karimireddy et al. 2020, algorithm 1 with option II; every node's own variate is kept here."""
    c = memory.get("c", np.zeros_like(x))
    own = memory.setdefault("own", [np.zeros_like(x) for _ in nodes])
    dy, dc = np.zeros_like(x), np.zeros_like(x)
    for i, (k, y) in enumerate(zip(nodes, ys)):
        plus = own[i] - c + (x - y) / (k.steps * plan.learning_rate)
        dy += (y - x) / len(nodes)
        dc += (plus - own[i]) / len(nodes)
        own[i] = plus
    memory["c"] = c + len(nodes) / memory["population"] * dc
    memory["told"] = {"control": memory["c"]}
    return x + o["server_learning_rate"] * dy


def q_fedavg(x, ys, nodes, plan, memory, o):
    """Li et al. 2020 (fairness), algorithm 2, with L = 1 / eta."""
    lipschitz, q = 1 / plan.learning_rate, o["q"]
    trained = np.ones(len(x), bool)
    trained[STATISTIC] = False
    delta, h = np.zeros_like(x), 0.0
    for k, y in zip(nodes, ys):
        dw = lipschitz * (x - y)
        delta += k.loss**q * dw
        h += q * k.loss ** (q - 1) * (dw[trained] ** 2).sum() + lipschitz * k.loss**q
    return x - delta / h


def fedbuff(x, ys, nodes, plan, memory, o):
    """Nguyen et al. 2022, algorithm 1, s(tau) = (1 + tau)^-a. A stale node's y is its delta from where x is now."""
    buffered = sum((1 + k.staleness) ** -o["staleness_exponent"] * (y - x) for k, y in zip(nodes, ys))
    return x + o["server_learning_rate"] / len(nodes) * buffered


def cases():
    lazy = [Node(120, 9, 0.7, 0), Node(40, 3, 2.4, 0), Node(1000, 64, 0.31, 0)]
    stale = [Node(k.examples, k.steps, k.loss, staleness) for k, staleness in zip(lazy, (0, 3, 11))]
    adam = {"server_learning_rate": 0.02, "beta1": 0.9, "beta2": 0.99, "tau": 0.001}
    slow = {"server_learning_rate": 0.5, "beta1": 0.3, "beta2": 0.8, "tau": 0.05}
    yield "fedavg", fedavg, {}, Plan(momentum=0.9), lazy
    yield "fedprox", fedavg, {"mu": 0.1}, Plan(mu=0.1), lazy
    yield "fedavgm", fedavgm, {"server_learning_rate": 0.7, "momentum": 0.8}, Plan(), lazy
    yield "fedadagrad", fedadagrad, {"server_learning_rate": 0.1, "beta1": 0.0, "tau": 0.01}, Plan(), lazy
    yield "fedadagrad", fedadagrad, {"server_learning_rate": 0.1, "beta1": 0.5, "tau": 0.001}, Plan(), lazy
    for options in (adam, slow):
        yield "fedadam", fedadam, options, Plan(momentum=0.9), lazy
        yield "fedyogi", fedyogi, options, Plan(momentum=0.9), lazy
    yield "fednova", fednova, {}, Plan(), lazy
    yield "fednova", fednova, {}, Plan(momentum=0.9), lazy
    yield "fednova", fednova, {}, Plan(mu=1.5), lazy
    yield "scaffold", scaffold, {"server_learning_rate": 1.0}, Plan(), lazy
    yield "scaffold", scaffold, {"server_learning_rate": 0.4}, Plan(learning_rate=0.003), lazy
    for q in (0.0, 0.5, 1.0, 2.0, 5.0):
        yield "q-fedavg", q_fedavg, {"q": q, "largest_loss": 4.0}, Plan(), lazy
    buffer = {"buffer_size": 3, "max_staleness": 11}
    yield "fedbuff", fedbuff, {**buffer, "server_learning_rate": 1.0, "staleness_exponent": 0.5}, Plan(), stale
    yield "fedbuff", fedbuff, {**buffer, "server_learning_rate": 0.3, "staleness_exponent": 1.0}, Plan(), stale


def run(step, options, plan, nodes, base, deltas):
    x, memory, rounds = base.copy(), {"population": 7}, []
    for per_node in deltas:
        ys = [x + d for d in per_node]
        after = step(x, ys, nodes, plan, memory, options)
        # Statistics are means weighted by examples in every strategy.
        after[STATISTIC] = fedavg(x, ys, nodes, plan, None, None)[STATISTIC]
        x = after
        state = {name: array.tolist() for name, array in memory.get("told", {}).items()}
        rounds.append({"weights": x.tolist(), "state": state})
    return rounds


def main():
    rng = np.random.default_rng(20)
    size = sum(n for _, n, kind in TENSORS if kind != "constant")
    base = f32(rng.normal(0, 0.5, size))
    deltas = f32(rng.normal(0, 0.03, (ROUNDS, 3, size)) * rng.choice([0.01, 1.0, 4.0], size))
    base[STATISTIC] = f32([12.5, -40.0, 3.0])
    # Multiples of a statistic's integer step, which is far coarser than a weight's: no rounding blurs the comparison.
    deltas[:, :, STATISTIC] = np.round(deltas[:, :, STATISTIC] * 128 * 1024) / 1024
    listed = []
    for name, step, options, plan, nodes in cases():
        rounds = run(step, options, plan, nodes, base, deltas)
        listed.append({
            "strategy": {"name": name, **options},
            "plan": vars(plan),
            "nodes": [vars(k) for k in nodes],
            "rounds": rounds,
        })
    out = {
        "tensors": [{"name": name, "len": n, "class": kind} for name, n, kind in TENSORS],
        "population": 7,
        "base": base.tolist(),
        "deltas": deltas.tolist(),
        "cases": listed,
    }
    json.dump(out, sys.stdout, separators=(",", ":"))
    print()


main()
