"""What operators with random or uninitialised results obey: laws instead of values, by NumPy.

Each law draws DRAWS numbers from a fixed seed and returns what is wrong, in words, or None. The largest distance
between the drawn and the lawful distribution function is within BOUND for all but one in ten million seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DRAWS = 50_000
BOUND = 3 / math.sqrt(DRAWS)

Law = Callable[[Any, torch.dtype, str], "str | None"]
Distribution = Callable[[Any], Any]  # values -> the share that is at most as large


def _normal(mean: float, deviation: float) -> Distribution:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return lambda x: 0.5 * (1 + erf((x - mean) / (deviation * math.sqrt(2))))


def _uniform(low: float, high: float) -> Distribution:
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def _cauchy(median: float, scale: float) -> Distribution:
    return lambda x: 0.5 + np.arctan((x - median) / scale) / math.pi


def _exponential(rate: float) -> Distribution:
    return lambda x: 1 - np.exp(-rate * np.maximum(x, 0))


def _log_normal(mean: float, deviation: float) -> Distribution:
    return lambda x: _normal(mean, deviation)(np.log(np.maximum(x, 1e-30)))


def _values(tensor: torch.Tensor) -> list[Any]:
    """Return the tensor's numbers in float64, real and imaginary parts apart."""
    tensor = tensor.detach().cpu()
    parts = [tensor.real, tensor.imag] if tensor.is_complex() else [tensor]
    return [part.to(torch.float64).numpy().reshape(-1) for part in parts]


def follows(values: Any, distribution: Distribution, grain: float) -> str | None:
    """Return how drawn values depart from a distribution; grain: the dtype's rounding, which values stand for."""
    ordered = np.sort(values)
    if np.isnan(ordered).any():
        return "it draws values that are no numbers"
    steps = np.arange(1, ordered.size + 1) / ordered.size
    # A rounded value stands for all that is rounded to it: the law is asked at both ends of that range.
    reach = np.abs(ordered) * grain
    # A value that was drawn often has all its steps in one place.
    last = np.append(ordered[1:] != ordered[:-1], True)
    above = np.max((steps - distribution(ordered + reach))[last])
    first = np.append(True, ordered[1:] != ordered[:-1])
    below = np.max((distribution(ordered - reach) - (steps - 1 / ordered.size))[first])
    if max(above, below) <= BOUND:
        return None
    return f"its numbers depart from their distribution by {max(above, below):.3g}, and {BOUND:.3g} is allowed"


def shares(values: Any, expected: dict[float, float]) -> str | None:
    """Return where the share of a value among those drawn is not {value: share}, within five deviations."""
    for value, share in expected.items():
        found = float(np.mean(values == value))
        allowed = 5 * math.sqrt(share * (1 - share) / values.size)
        if abs(found - share) > allowed:
            return f"{found:.4f} of its numbers are {value:g}, and the law says {share:.4f} within {allowed:.4f}"
    return None


def _grain(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) if dtype.is_floating_point or dtype.is_complex else 0.0


def _in_place(distribution: Distribution, *parameters: float, part: Distribution | None = None) -> Law:
    """Return the law of an operator that fills a tensor. part: the law of real and imaginary parts."""

    def law(op: Any, dtype: torch.dtype, device: str) -> str | None:
        drawn = op(torch.zeros(DRAWS, dtype=dtype, device=device), *parameters)
        lawful = part if part is not None and dtype.is_complex else distribution
        return next((said for one in _values(drawn) if (said := follows(one, lawful, _grain(dtype)))), None)

    return law


def _geometric(op: Any, dtype: torch.dtype, device: str) -> str | None:
    (drawn,) = _values(op(torch.zeros(DRAWS, dtype=dtype, device=device), 0.3))
    return shares(drawn, {float(k): 0.7 ** (k - 1) * 0.3 for k in range(1, 6)} | {0.0: 0.0})


def _new(distribution: Distribution, part: Distribution) -> Law:
    """Return the law of randn and its like: a size or a tensor as long, and the dtype."""

    def law(op: Any, dtype: torch.dtype, device: str) -> str | None:
        like = op.full_name.endswith("_like")
        given: Any = torch.zeros(DRAWS, dtype=dtype, device=device) if like else (DRAWS,)
        # The database's rand_like draws from randn_like, to compare it with itself.
        function = torch.rand_like if op.full_name == "rand_like" else op
        drawn = function(given) if like else op(given, dtype=dtype, device=device)
        if drawn.dtype != dtype:
            return f"its dtype is {drawn.dtype}"
        lawful = part if dtype.is_complex else distribution
        return next((said for one in _values(drawn) if (said := follows(one, lawful, _grain(dtype)))), None)

    return law


def _normal_of(op: Any, dtype: torch.dtype, device: str) -> str | None:
    mean, deviation = (torch.full((DRAWS,), value, dtype=dtype, device=device) for value in (1.5, 0.25))
    return follows(_values(op(mean, deviation))[0], _normal(1.5, 0.25), _grain(dtype))


def _normal_of_numbers(op: Any, dtype: torch.dtype, device: str) -> str | None:
    drawn = op(0.25, 1.5, (DRAWS,), dtype=dtype, device=device)  # the database's samples name the deviation first
    return follows(_values(drawn)[0], _normal(1.5, 0.25), _grain(dtype))


def _randint(op: Any, dtype: torch.dtype, device: str) -> str | None:
    low, high = (0, 2) if dtype == torch.bool else (2, 10)
    if op.full_name == "randint":
        drawn = op(low, high, (DRAWS,), dtype=dtype, device=device)
    else:
        drawn = op(torch.zeros(DRAWS, dtype=dtype, device=device), low, high)
    lawful = {float(value): 1 / (high - low) for value in range(low, high)}
    return shares(_values(drawn.to(torch.int64))[0], lawful | {low - 1.0: 0.0, float(high): 0.0})


def _multinomial(op: Any, dtype: torch.dtype, device: str) -> str | None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0], dtype=dtype, device=device)
    (drawn,) = _values(op(weights, DRAWS, replacement=True))
    return shares(drawn, {0.0: 1 / 8, 1.0: 0.0, 2.0: 2 / 8, 3.0: 5 / 8})


def _bernoulli(op: Any, dtype: torch.dtype, device: str) -> str | None:
    (drawn,) = _values(op(torch.full((DRAWS,), 0.25, dtype=dtype, device=device)))
    return shares(drawn, {1.0: 0.25, 0.0: 0.75})


ALPHA = -1.7580993408473766  # SELU's value at minus infinity, to which alpha dropout sets what it drops


def _dropout(features: bool, alpha: bool = False) -> Law:
    """Return the law of dropout: which values there are, how many, and that channels go as one where they must."""

    def law(op: Any, dtype: torch.dtype, device: str) -> str | None:
        rank = {"nn.functional.dropout2d": 4, "nn.functional.dropout3d": 5}.get(op.full_name, 4)
        shape = (DRAWS // 50, 50, *[2] * (rank - 2)) if features else (DRAWS,)
        dropped = op(torch.ones(shape, dtype=dtype, device=device), p=0.25, training=True)
        (values,) = _values(dropped)
        if features:
            channels = values.reshape(DRAWS, -1)
            if (channels != channels[:, :1]).any():
                return "it drops parts of a channel"
            values = channels[:, 0]
        scale = 1 / math.sqrt((ALPHA**2 * 0.25 + 1) * 0.75)
        shift = -scale * ALPHA * 0.25
        kept, gone = (scale + shift, scale * ALPHA + shift) if alpha else (1 / 0.75, 0.0)
        close = 4 * _grain(dtype)
        if not (np.isclose(values, kept, close, close) | np.isclose(values, gone, close, close)).all():
            return f"there are values other than {kept:.5g} and {gone:.5g}: {values[:4]}"
        return shares(np.where(np.isclose(values, gone, close, close), 0.0, 1.0), {0.0: 0.25})

    return law


def _rrelu(op: Any, dtype: torch.dtype, device: str) -> str | None:
    given = torch.full((DRAWS,), -1.0, dtype=dtype, device=device)
    return follows(-_values(op(given, lower=0.25, upper=0.5, training=True))[0], _uniform(0.25, 0.5), _grain(dtype))


def _fractional_max_pool(rank: int) -> Law:
    """Return the law of fractional pooling: each output is a value of its plane, the largest among them."""

    def law(op: Any, dtype: torch.dtype, device: str) -> str | None:
        planes = torch.randperm(2 * 9**rank).reshape(1, 2, *[9] * rank) / 64  # exact in every dtype up to 2048 values
        planes = planes.to(dtype).to(device)
        pooled = op(planes, 3, output_size=5, return_indices=False)
        for plane, small in zip(planes[0].cpu().double().numpy(), pooled[0].cpu().double().numpy(), strict=True):
            if small.shape != (5,) * rank or not np.isin(small, plane).all():
                return "it returns values that are not in its input"
            # Windows of 3 that cover 9 in 5 steps: the last one ends where the input ends.
            corner = plane[(slice(-3, None),) * rank].max()
            if small[(-1,) * rank] != corner:
                return f"its last window holds {corner}, and it returns {small[(-1,) * rank]}"
        return None

    return law


def _form(make: Callable[[Any, torch.dtype, str], tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]]) -> Law:
    """Return the law of what is not initialised: shape, strides, dtype and device, and that it can be written."""

    def law(op: Any, dtype: torch.dtype, device: str) -> str | None:
        made, shape, strides = make(op, dtype, device)
        if made.dtype != dtype or made.device.type != torch.device(device).type:
            return f"it makes {made.dtype} on {made.device}"
        if (tuple(made.shape), made.stride()) != (shape, strides):
            return f"it makes {tuple(made.shape)} with strides {made.stride()}; {shape} and {strides} were asked for"
        if not (made.fill_(1) == 1).all():
            return "what was written is not there"
        return None

    return law


def _like(op: Any, dtype: torch.dtype, device: str) -> Any:
    return op(torch.zeros(3, 5, dtype=dtype, device=device)), (3, 5), (5, 1)


LAWS: dict[str, Law] = {
    "cauchy": _in_place(_cauchy(1.0, 2.0), 1.0, 2.0),
    "exponential": _in_place(_exponential(1.5), 1.5),
    "geometric": _geometric,
    "log_normal": _in_place(_log_normal(0.5, 0.25), 0.5, 0.25),
    "normal.in_place": _in_place(_normal(1.0, 2.0), 1.0, 2.0, part=_normal(1.0, math.sqrt(2))),
    "uniform": _in_place(_uniform(-3.0, 5.0), -3.0, 5.0),
    "randn": _new(_normal(0, 1), _normal(0, math.sqrt(0.5))),
    "randn_like": _new(_normal(0, 1), _normal(0, math.sqrt(0.5))),
    "rand_like": _new(_uniform(0, 1), _uniform(0, 1)),
    "normal": _normal_of,
    "normal.number_mean": _normal_of_numbers,
    "randint": _randint,
    "randint_like": _randint,
    "multinomial": _multinomial,
    "bernoulli": _bernoulli,
    "nn.functional.dropout": _dropout(features=False),
    "nn.functional.dropout2d": _dropout(features=True),
    "nn.functional.dropout3d": _dropout(features=True),
    "nn.functional.alpha_dropout": _dropout(features=False, alpha=True),
    "nn.functional.feature_alpha_dropout.with_train": _dropout(features=True, alpha=True),
    "nn.functional.rrelu": _rrelu,
    "nn.functional.fractional_max_pool2d": _fractional_max_pool(2),
    "nn.functional.fractional_max_pool3d": _fractional_max_pool(3),
    "empty": _form(lambda op, dtype, device: (op((3, 5), dtype=dtype, device=device), (3, 5), (5, 1))),
    "empty_like": _form(_like),
    "empty_strided": _form(lambda op, dtype, device: (op((3, 5), (1, 4), dtype=dtype, device=device), (3, 5), (1, 4))),
    "empty_permuted": _form(lambda op, dtype, device: (op((3, 5), (1, 0), dtype=dtype, device=device), (3, 5), (1, 3))),
    "new_empty": _form(
        lambda op, dtype, device: (op(torch.zeros(2, dtype=dtype, device=device), (3, 5)), (3, 5), (5, 1))
    ),
    "new_empty_strided": _form(
        lambda op, dtype, device: (op(torch.zeros(2, dtype=dtype, device=device), (3, 5), (1, 4)), (3, 5), (1, 4))
    ),
}
