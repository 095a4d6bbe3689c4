"""Linear classifiers on frozen features: many settings fitted together, the best chosen on held-out rows of the bank."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from trainers.schedules import cosine

RATES = tuple(10 ** (power / 2) for power in range(-8, 1))
"""Learning rates of SGD that are tried: 1e-4 to 1."""
REGULARISATIONS = tuple(10.0**power for power in range(-5, 3))
"""Inverse regularisations C of logistic regression that are tried, in scikit-learn's sense."""
_HELD_OUT = 0.2
_BATCH, _MOMENTUM, _EPOCHS, _MIN_STEPS = 256, 0.9, 10, 1000
_MEMORY, _ITERATIONS, _TOLERANCE = 10, 300, 1e-5
_LOGITS = 2**26
"""Logits held at once: 256 MiB."""

Fit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Inputs (N, P) with a last column of ones, labels (N,) and settings (S,) to weights (S, C, P) for C classes."""


def probe_accuracy(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    *,
    rng_key: int,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Accuracy on `queries` (M, D) of classifiers fitted to `bank` (N, D), all float32, and their chosen settings.

    "linear" is trained by SGD with "linear_rate", "logistic" is regression to the optimum with "logistic_c". A fifth of the
    bank decides on the setting, then all of it is fitted; queries decide on nothing. Holds a copy of the bank on the device.
    """
    classes, class_numbers = np.unique(bank_labels, return_inverse=True)
    mean, std = bank.mean(0, dtype=np.float64), bank.std(0, dtype=np.float64) + 1e-6
    inputs, query_inputs = (_inputs(rows, mean, std, device) for rows in (bank, queries))
    targets = torch.from_numpy(class_numbers).to(device)
    truth = torch.from_numpy(np.searchsorted(classes, labels)).to(device)
    truth[torch.from_numpy(~np.isin(labels, classes)).to(device)] = -1  # a class that the bank lacks: always counted as wrong

    def sgd(x: Tensor, y: Tensor, rates: Tensor) -> Tensor:
        return fit_sgd(x, y, rates, num_classes=len(classes), rng_key=rng_key)

    def regression(x: Tensor, y: Tensor, regularisations: Tensor) -> Tensor:
        return fit_logistic(x, y, regularisations, num_classes=len(classes))

    result: dict[str, float] = {}
    sweeps: tuple[tuple[str, str, Fit, tuple[float, ...]], ...] = (
        ("linear", "linear_rate", sgd, RATES),
        ("logistic", "logistic_c", regression, REGULARISATIONS),
    )
    for name, setting_name, fit, settings in sweeps:
        candidates = torch.tensor(settings, device=device)
        best = _choose(fit, inputs, targets, candidates, rng_key)
        accuracy, _ = _score(query_inputs, truth, fit(inputs, targets, candidates[best : best + 1]))
        result |= {name: float(accuracy), setting_name: settings[best]}
    return result


def _inputs(rows: np.ndarray, mean: np.ndarray, std: np.ndarray, device: torch.device | None) -> Tensor:
    """Standardised rows (N, D) with a column of ones: (N, D + 1)."""
    inputs = torch.ones(len(rows), rows.shape[1] + 1, device=device)
    inputs[:, :-1] = torch.from_numpy(rows).to(device)
    inputs[:, :-1] -= torch.from_numpy(mean.astype(np.float32)).to(device)
    inputs[:, :-1] /= torch.from_numpy(std.astype(np.float32)).to(device)
    return inputs


def _choose(fit: Fit, inputs: Tensor, targets: Tensor, settings: Tensor, rng_key: int) -> int:
    """The index of the most accurate of `settings` (S,) on held-out rows; of equals the one with the smallest loss."""
    num = len(inputs)
    order = torch.from_numpy(rng.permute(rng.key(rng_key, "held out"), np.arange(num), num)).to(inputs.device)
    held_out = order[: max(1, int(num * _HELD_OUT))]
    rest = order[len(held_out) :] if num > 1 else order
    accuracy, loss = _score(inputs[held_out], targets[held_out], fit(inputs[rest], targets[rest], settings))
    return int(torch.where(accuracy == accuracy.max(), loss, torch.inf).argmin())


def _score(inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy (S,) of classifiers `weights` (S, C, P). Targets of -1 count as wrong."""
    hits = torch.zeros(len(weights), device=inputs.device)
    loss = torch.zeros(len(weights), device=inputs.device)
    for rows, labels in _blocks(inputs, targets, weights):
        logits = torch.einsum("np,scp->nsc", rows, weights)
        hits += (logits.argmax(2) == labels[:, None]).sum(0)
        loss += (logits.logsumexp(2) - _at(logits, labels.clamp_min(0))).nan_to_num(torch.inf).sum(0)
    return hits / len(inputs), loss / len(inputs)


def fit_sgd(inputs: Tensor, targets: Tensor, rates: Tensor, *, num_classes: int, rng_key: int) -> Tensor:
    """Softmax classifiers (S, C, P), one for each of `rates` (S,): SGD with momentum from zero, rates falling on a cosine.

    As the linear evaluation of DINO and DINOv2, over batches of 256, for ten epochs and no less than a thousand steps.
    """
    num = len(inputs)
    weights = torch.zeros(len(rates), num_classes, inputs.shape[1], device=inputs.device)
    momentum = torch.zeros_like(weights)
    epochs = max(_EPOCHS, math.ceil(_MIN_STEPS / math.ceil(num / _BATCH)))
    step, steps = 0, epochs * math.ceil(num / _BATCH)
    for epoch in range(epochs):
        order = rng.tickets(rng.key(rng_key, "batches", epoch), 0, num).argsort(kind="stable")
        for batch in torch.from_numpy(order).to(inputs.device).split(_BATCH):
            _, gradient = cross_entropy(inputs[batch], targets[batch], weights)
            momentum.mul_(_MOMENTUM).add_(gradient, alpha=1 / len(batch))
            weights -= rates[:, None, None] * cosine(step, steps, 1.0, 0.0) * momentum
            step += 1
    return weights


def fit_logistic(inputs: Tensor, targets: Tensor, regularisations: Tensor, *, num_classes: int) -> Tensor:
    """Multinomial logistic regressions (S, C, P), one for each inverse regularisation in `regularisations` (S,).

    Each minimises C sum_n cross_entropy_n + |W|²/2 with the last column, the bias, left out of the penalty: what
    scikit-learn's LogisticRegression minimises. Here divided by C N, so that one tolerance suits all.
    """
    num = len(inputs)
    penalty = 1 / (regularisations * num)
    shape = (num_classes, inputs.shape[1])

    def objective(flat: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        weights = flat.unflatten(1, shape)
        loss = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
        gradient = torch.zeros_like(weights)
        for rows, labels in _blocks(inputs, targets, weights):
            block_loss, block_gradient = cross_entropy(rows, labels, weights)
            loss += block_loss
            gradient += block_gradient
        shrunk = weights.clone()
        shrunk[:, :, -1] = 0
        loss = loss / num + penalty[which] * shrunk.square().sum((1, 2)) / 2
        return loss, (gradient / num + penalty[which, None, None] * shrunk).flatten(1)

    start = torch.zeros(len(regularisations), math.prod(shape), device=inputs.device)
    return minimise(objective, start).unflatten(1, shape)


def cross_entropy(inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Summed over rows: cross-entropies (S,) and their gradients (S, C, P), of all classifiers in one product each way."""
    logits = (inputs @ weights.flatten(0, 1).T).unflatten(1, weights.shape[:2])
    log_sum = logits.logsumexp(2)
    loss = (log_sum - _at(logits, targets)).sum(0, dtype=torch.float64)
    residual = logits.sub_(log_sum[:, :, None]).exp_()
    residual[torch.arange(len(targets), device=targets.device), :, targets] -= 1
    return loss, (residual.flatten(1).T @ inputs).unflatten(0, weights.shape[:2])


def _at(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits (N, S) of the targets (N,), out of (N, S, C)."""
    return logits.gather(2, targets[:, None, None].expand(-1, logits.shape[1], 1))[:, :, 0]


def _blocks(inputs: Tensor, targets: Tensor, weights: Tensor) -> "zip[tuple[Tensor, Tensor]]":
    """Blocks of rows and labels, small enough that their logits stay within `_LOGITS`."""
    rows = max(1, _LOGITS // (weights.shape[0] * weights.shape[1]))
    return zip(inputs.split(rows), targets.split(rows), strict=True)


def minimise(objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], start: Tensor) -> Tensor:
    """Minima (S, P) of S smooth convex functions together, by L-BFGS from `start` (S, P), each with its own step sizes.

    Nocedal and Wright, "Numerical Optimization", 2006, algorithms 7.4 and 3.1. `objective(points (A, P), which (A,))` gives
    the values (A,) and gradients (A, P) of functions `which`; functions whose largest gradient entry is within the tolerance
    are not evaluated again.
    """
    result, which = start.clone(), torch.arange(len(start), device=start.device)
    point = start
    value, gradient = objective(point, which)
    history: list[tuple[Tensor, Tensor]] = []  # steps and changes of the gradient, both (A, P)
    for _ in range(_ITERATIONS):
        active = gradient.abs().amax(1) > _TOLERANCE
        if not active.all():
            result[which] = point
            which, point, value, gradient = which[active], point[active], value[active], gradient[active]
            history = [(step[active], change[active]) for step, change in history]
            if not len(which):
                return result
        direction = _direction(gradient, history)
        slope = torch.linalg.vecdot(gradient, direction)
        size = torch.ones_like(slope)
        for _ in range(30):
            step = size[:, None] * direction
            new_value, new_gradient = objective(point + step, which)
            # The last term allows for the rounding of float32.
            enough = new_value <= value + 1e-4 * size * slope + 1e-6 * value.abs()
            if enough.all():
                break
            size = torch.where(enough, size, size / 2)
        history = [*history, (step, new_gradient - gradient)][-_MEMORY:]
        point, value, gradient = point + step, new_value, new_gradient
    result[which] = point
    return result


def _direction(gradient: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the gradient times the inverse Hessian that `history` approximates: (A, P)."""
    if not history:
        return -gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp_min(1)
    curvatures = [torch.linalg.vecdot(step, change) for step, change in history]
    # Of a convex function they are positive, but for rounding.
    inverses = [torch.where(curvature > 0, 1 / curvature, 0) for curvature in curvatures]
    q, shares = gradient, []
    for (step, change), inverse in zip(reversed(history), reversed(inverses), strict=True):
        shares.append(inverse * torch.linalg.vecdot(step, q))
        q = q - shares[-1][:, None] * change
    squared = history[-1][1].square().sum(1)
    q = q * torch.where(curvatures[-1] > 0, curvatures[-1] / squared, 1)[:, None]
    for (step, change), inverse, share in zip(history, inverses, reversed(shares), strict=True):
        q = q + (share - inverse * torch.linalg.vecdot(change, q))[:, None] * step
    return -q
