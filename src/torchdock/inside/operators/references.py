"""What operators give, by NumPy: references that share no code with torch.

Each takes a sample's input, arguments and keywords as NumPy has them (floats and complex numbers as float64 and
complex128) and returns what the operator returns. A part that the operator leaves open, as the index of one of several
equal values, is None. For options that it does not know it raises NotImplementedError, and float64 stands in. Keywords
that say where a result lies (``device``, ``memory_format``) are taken and mean nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any  # an array or a NumPy scalar; numpy is not there where mypy runs
Reference = Callable[..., Any]


def _scaled(factor: float, array: Array) -> Array:
    """Return factor times array; integers take the whole part of the factor, as torch does."""
    return (int(factor) if array.dtype.kind in "bi" else factor) * array


def _product(left: Callable[[Array, Array], Array]) -> Reference:
    """Return beta c + alpha product(a, b), for the family of addmm; a beta of 0 ignores c, even a NaN."""

    def reference(c: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1, **_: Any) -> Array:
        if c.dtype.kind == "b":
            return (bool(beta) & c) | (bool(alpha) & left(a, b))
        added = _scaled(alpha, left(a, b))
        return added if beta == 0 else _scaled(beta, c) + added

    return reference


def _reversed(function: Callable[[Array, Array], Array]) -> Reference:
    return lambda a, b: function(b, a)


def _divide(a: Array, b: Array, *, rounding_mode: str | None = None) -> Array:
    if rounding_mode == "floor":
        return np.floor_divide(a, b)
    if rounding_mode == "trunc" and np.result_type(a, b).kind == "i":
        return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
    return np.trunc(np.true_divide(a, b)) if rounding_mode else np.true_divide(a, b)


def _pieces(array: Array, sizes: Sequence[int], dim: int) -> Array:
    return np.split(array, np.cumsum(sizes)[:-1], axis=dim)


def _split(array: Array, size: int | Sequence[int], dim: int = 0, **_: Any) -> Array:
    length = array.shape[dim]
    if isinstance(size, int):
        size = [min(size, length - start) for start in range(0, length, size)] or [0]
    return _pieces(array, size, dim)


def _chunk(array: Array, chunks: int, dim: int = 0) -> Array:
    return _split(array, max(1, math.ceil(array.shape[dim] / chunks)), dim)


def _sections(axis: int) -> Reference:
    def reference(array: Array, where: int | Sequence[int]) -> Array:
        return np.split(array, where, axis=0 if axis == 1 and array.ndim == 1 else axis)

    return reference


def _expand(array: Array, *shape: Any) -> Array:
    wanted = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
    for back in range(1, array.ndim + 1):
        if wanted[-back] == -1:
            wanted[-back] = array.shape[-back]
    return np.broadcast_to(array, wanted)


def _sum_to_size(array: Array, *shape: Any) -> Array:
    wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    ahead = array.ndim - len(wanted)
    array = array.sum(axis=tuple(range(ahead)))
    kept = tuple(axis for axis, size in enumerate(wanted) if size == 1)
    return array.sum(axis=kept, keepdims=True)


def _shape(array: Array, *shape: Any) -> Array:
    return array.reshape(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def _diag_embed(array: Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Array:
    size = array.shape[-1] + abs(offset)
    made = np.zeros((*array.shape[:-1], size, size), array.dtype)
    steps = np.arange(array.shape[-1])
    made[..., steps + max(-offset, 0), steps + max(offset, 0)] = array
    return np.moveaxis(made, (-2, -1), (dim1, dim2))


def _diagonal(array: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    return np.diagonal(array, offset, dim1, dim2)


def _extreme(reduce: Callable[..., Array]) -> Reference:
    """Return max or min: all of it, or along a dimension, where which of equal values is open."""

    def reference(array: Array, dim: int | None = None, keepdim: bool = False) -> Any:
        return reduce(array) if dim is None else (reduce(array, axis=dim, keepdims=keepdim), None)

    return reference


def _nth(array: Array, position: int, dim: int, keepdim: bool) -> tuple[Array, None]:
    value = np.take(np.sort(np.atleast_1d(array), axis=dim), position, axis=dim)
    return (np.expand_dims(value, dim) if keepdim and array.ndim else value), None


def _kthvalue(array: Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Array, None]:
    return _nth(array, k - 1, dim, keepdim)


def _median(array: Array, dim: int | None = None, keepdim: bool = False) -> Any:
    """Return the lower of the two in the middle, and NaN where there is one."""
    if dim is None:
        return _median(array.reshape(-1), 0)[0]
    size = np.atleast_1d(array).shape[dim]
    value, _ = _nth(array, (size - 1) // 2, dim, keepdim)
    missing = np.isnan(array).any(axis=dim if array.ndim else None, keepdims=keepdim and array.ndim > 0)
    return np.where(missing, np.nan, value) if array.dtype.kind == "f" else value, None


def _running(accumulate: Callable[..., Array]) -> Reference:
    return lambda array, dim: (accumulate(array, axis=dim) if array.ndim else array, None)


def _cumulated(function: Callable[..., Array]) -> Reference:
    def reference(array: Array, dim: int, *, dtype: Any = None) -> Array:
        return function(np.atleast_1d(array), axis=dim, dtype=dtype).reshape(array.shape)

    return reference


def _exponentials(array: Array, dim: int) -> Array:
    raised = np.exp(array - array.max(axis=dim, keepdims=True)) if array.size else array
    return raised / raised.sum(axis=dim, keepdims=True)


def _softmax(array: Array, dim: int, *, dtype: Any = None, **_: Any) -> Array:
    return _exponentials(array if dtype is None else array.astype(dtype), dim)


def _log_softmax(array: Array, dim: int, *, dtype: Any = None) -> Array:
    array = array if dtype is None else array.astype(dtype)
    moved = array - array.max(axis=dim, keepdims=True) if array.size else array
    return moved - np.log(np.exp(moved).sum(axis=dim, keepdims=True))


def _logsumexp(array: Array, dim: Any, keepdim: bool = False) -> Array:
    axis = (dim if isinstance(dim, int) else tuple(dim)) if array.ndim else None
    largest = np.real(array).max(axis=axis, keepdims=True) if array.size else 0.0
    summed = np.log(np.exp(array - np.where(np.isfinite(largest), largest, 0)).sum(axis=axis, keepdims=True))
    result = summed + np.where(np.isfinite(largest), largest, 0)
    return result if keepdim and array.ndim else result.squeeze(axis)


def _reduced(array: Array, reduction: str) -> Array:
    return {"none": lambda x: x, "mean": np.mean, "sum": np.sum}[reduction](array)


def _loss(function: Reference) -> Reference:
    """Return a loss with its ``reduction``, from the function of each element."""

    def reference(x: Array, y: Array, *rest: Array, reduction: str = "mean", **words: Any) -> Array:
        return _reduced(function(x, y, *rest, **words), reduction)

    return reference


def _binary_cross_entropy(x: Array, y: Array, *, weight: Array | None = None) -> Array:
    with np.errstate(divide="ignore"):
        log, other = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
    return -(y * log + (1 - y) * other) * (1 if weight is None else weight)


def _with_logits(x: Array, y: Array, *, weight: Array | None = None, pos_weight: Array | None = None) -> Array:
    minus, plus = np.logaddexp(0, -x), np.logaddexp(0, x)
    return (y * minus * (1 if pos_weight is None else pos_weight) + (1 - y) * plus) * (1 if weight is None else weight)


def _huber(x: Array, y: Array, *, delta: float = 1.0) -> Array:
    distance = np.abs(x - y)
    return np.where(distance < delta, 0.5 * distance**2, delta * (distance - 0.5 * delta))


def _kl_div(x: Array, y: Array, *, reduction: str = "mean", log_target: bool = False) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.exp(y) * (y - x) if log_target else np.where(y > 0, y * (np.log(y) - x), -y * x)
    return each.sum() / x.shape[0] if reduction == "batchmean" else _reduced(each, reduction)


def _soft_margin(x: Array, y: Array) -> Array:
    return np.logaddexp(0, -x * y)


def _margin_ranking(x: Array, y: Array, sign: Array, *, margin: float = 0.0) -> Array:
    return np.maximum(0, -sign * (x - y) + margin)


def _hinge_embedding(x: Array, y: Array, *, margin: float = 1.0) -> Array:
    return np.where(y == -1, 0, x) + np.where(y == 1, 0, np.maximum(0, margin - x))


def _nll_loss(
    x: Array, target: Array, *, weight: Array | None = None, reduction: str = "mean", ignore_index: int = -100
) -> Array:
    """x: (N, C, …) or (C,), target: (N, …) or a class."""
    if x.ndim == 1:
        x, target, lonely = x[None], target.reshape(1), True
    else:
        lonely = False
    kept = target != ignore_index
    classes = np.where(kept, target, 0)
    weights = (np.ones(x.shape[1]) if weight is None else weight)[classes] * kept
    each = -np.take_along_axis(x, classes[:, None], axis=1)[:, 0] * weights
    if reduction == "mean":
        return each.sum() / weights.sum()
    return each[0] if lonely and reduction == "none" else _reduced(each, reduction)


def _cross_entropy(x: Array, target: Array, *, label_smoothing: float = 0.0, **words: Any) -> Array:
    axis = 0 if x.ndim == 1 else 1
    logs = _log_softmax(x, axis)
    if target.dtype.kind == "i" and label_smoothing == 0.0:
        return _nll_loss(logs, target, **words)
    raise NotImplementedError  # probabilities as targets; see the table of what is left to float64


def _normalize(array: Array, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Array:
    size = np.abs(array)
    norm = np.count_nonzero(size, dim, keepdims=True) if p == 0 else (size**p).sum(axis=dim, keepdims=True) ** (1 / p)
    return array / np.maximum(norm, eps)


def _cosine_similarity(x: Array, y: Array, dim: int = 1, eps: float = 1e-8) -> Array:
    x, y = np.broadcast_arrays(x, y)

    def length(array: Array) -> Array:
        return np.maximum(np.sqrt((array * array).sum(axis=dim)), eps)

    return (x * y).sum(axis=dim) / (length(x) * length(y))


def _batch_norm(
    x: Array,
    mean: Array | None,
    variance: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """x: (N, C, …). Also with the batch's own mean and variance."""
    if x.ndim < 2:
        raise NotImplementedError
    axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
    if training or mean is None or variance is None:
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
    result = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + eps)
    result = result if weight is None else result * weight.reshape(shape)
    return result if bias is None else result + bias.reshape(shape)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = (value,) * length if isinstance(value, int) else tuple(value)
    return values * length if len(values) == 1 else values


def _conv(rank: int) -> Reference:
    """Return convolution over ``rank`` axes, as the sum over the kernel's taps. x: (N, C, …) or (C, …)."""

    def reference(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Array:
        lonely = x.ndim == rank + 1
        x = x[None] if lonely else x
        stride, dilation, kernel = _tuple(stride, rank), _tuple(dilation, rank), weight.shape[2:]
        if padding == "same":
            whole = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
            sides = [(one // 2, one - one // 2) for one in whole]
        else:
            sides = [(one, one) for one in _tuple(0 if padding == "valid" else padding, rank)]
        x = np.pad(x, [(0, 0), (0, 0), *sides])
        taps = zip(x.shape[2:], kernel, dilation, stride, strict=True)
        size = [(length - step * (taken - 1) - 1) // every + 1 for length, taken, step, every in taps]
        inside, outside = weight.shape[1], weight.shape[0] // groups
        result = np.zeros((x.shape[0], weight.shape[0], *size), np.result_type(x, weight))
        for tap in itertools.product(*map(range, kernel)):
            places = zip(tap, dilation, stride, size, strict=True)
            at = (Ellipsis, *(slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in places))
            window = x[at]
            for group in range(groups):
                rows = slice(group * outside, (group + 1) * outside)
                corner = (rows, slice(None), *tap)
                part = window[:, group * inside : (group + 1) * inside]
                result[:, rows] += np.einsum("oi,ni...->no...", weight[corner], part)
        result = result if bias is None else result + bias.reshape(-1, *[1] * rank)
        return result[0] if lonely else result

    return reference


def _adaptive_avg_pool(rank: int) -> Reference:
    def reference(x: Array, output_size: Any) -> Array:
        sizes = [output_size] * rank if isinstance(output_size, int) else output_size
        for axis, wanted in zip(range(-rank, 0), sizes, strict=True):
            length = x.shape[axis]
            size = length if wanted is None else wanted
            bounds = [(length * at // size, -(-length * (at + 1) // size)) for at in range(size)]
            parts = [x.take(range(low, high), axis).mean(axis, keepdims=True) for low, high in bounds]
            x = np.concatenate(parts, axis)
        return x

    return reference


def _attention(
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """q: (…, L, E), k: (…, S, E), v: (…, S, Ev)."""
    if dropout_p:
        raise NotImplementedError
    if enable_gqa:
        k, v = (np.repeat(one, q.shape[-3] // one.shape[-3], axis=-3) for one in (k, v))
    scores = q @ np.swapaxes(k, -1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = np.tril(np.ones(scores.shape[-2:], bool))
    if attn_mask is not None:
        scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype.kind == "b" else scores + attn_mask
    return _exponentials(scores, -1) @ v


def _index(array: Array, dim: int, index: Array) -> tuple[Any, ...]:
    """Return what selects ``index`` along ``dim``."""
    return (*[slice(None)] * (dim % max(array.ndim, 1)), np.atleast_1d(index))


def _written(array: Array, dim: int, index: Array, source: Any, how: str = "copy", alpha: float = 1) -> Array:
    """Return a copy of array with rows written or added, one after the other."""
    result = np.atleast_1d(array).copy()
    at = _index(result, dim, index)
    if how == "add":
        np.add.at(result, at, _scaled(alpha, np.atleast_1d(source)))
    else:
        result[at] = source
    return result.reshape(np.shape(array))


def _scattered(function: Callable[[Any, Any], Any]) -> Reference:
    """Return scatter: function(old, new) for each element of ``index``, one after the other."""

    def reference(array: Array, dim: int, index: Array, source: Any, *, reduce: str | None = None) -> Array:
        known = {"add": lambda old, new: old + new, "multiply": lambda old, new: old * new, None: function}
        result, index = np.atleast_1d(array).copy(), np.atleast_1d(index)
        source = np.broadcast_to(source, index.shape) if np.ndim(source) == 0 else np.asarray(source)
        source = source.astype(result.dtype)
        for place in np.ndindex(*index.shape):
            at = list(place)
            at[dim] = index[place]
            result[tuple(at)] = known[reduce](result[tuple(at)], source[place])
        return result.reshape(np.shape(array))

    return reference


def _gather(array: Array, dim: int, index: Array, **_: Any) -> Array:
    result = np.empty(np.shape(index), array.dtype)
    whole, places = np.atleast_1d(array), np.atleast_1d(index)
    for place in np.ndindex(*places.shape):
        at = list(place)
        at[dim] = int(places[place])
        result[place if np.ndim(index) else ()] = whole[tuple(at)]
    return result


def _put(array: Array, index: Array, source: Array, accumulate: bool = False) -> Array:
    result = array.copy()
    flat, values = result.reshape(-1), np.asarray(source).reshape(-1)
    for at, value in zip(np.asarray(index).reshape(-1), values, strict=True):
        flat[at] = flat[at] + value if accumulate else value
    return flat.reshape(array.shape)


def _index_put(array: Array, index: Any, values: Array, accumulate: bool = False) -> Array:
    result = array.copy()
    if accumulate:
        np.add.at(result, tuple(index), values)
    else:
        result[tuple(index)] = values
    return result


def _masked_scatter(array: Array, mask: Array, source: Array) -> Array:
    array, mask = (one.copy() for one in np.broadcast_arrays(array, mask))
    array[mask] = source.reshape(-1)[: int(mask.sum())]
    return array


def _sorted(array: Array, dim: int = -1, descending: bool = False, stable: bool = False) -> tuple[Array, None]:
    result = np.sort(array, axis=dim) if array.ndim else array
    return (np.flip(result, dim) if descending and array.ndim else result), None


def _topk(array: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Any, None]:
    if not sorted:
        return None, None
    ranked, _ = _sorted(array, dim, largest)
    return (ranked.take(range(k), dim) if array.ndim else array), None


def _unfold(array: Array, dim: int, size: int, step: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(np.atleast_1d(array), size, axis=dim)
    result = windows.take(range(0, windows.shape[dim], step), axis=dim)
    return result if array.ndim else result[0]


def _as_strided(array: Array, size: Sequence[int], stride: Sequence[int], storage_offset: int = 0) -> Array:
    flat = array.reshape(-1)
    places = np.full(tuple(size), storage_offset)
    for axis, step in enumerate(stride):
        places = places + np.arange(size[axis]).reshape(-1, *[1] * (len(size) - axis - 1)) * step
    return flat[places]


def _slice(array: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return np.moveaxis(np.moveaxis(array, dim, 0)[start:end:step], 0, dim)


def _slice_scatter(array: Array, source: Array, dim: int = 0, *bounds: Any, **named: Any) -> Array:
    result = array.copy()
    _slice(result, dim, *bounds, **named)[...] = source
    return result


def _select_scatter(array: Array, source: Array, dim: int, index: int) -> Array:
    result = array.copy()
    np.moveaxis(result, dim, 0)[index] = source
    return result


def _diagonal_scatter(array: Array, source: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    result = array.copy()
    view = np.moveaxis(result, (dim1, dim2), (-2, -1))
    steps = np.arange(source.shape[-1])
    view[..., steps + max(-offset, 0), steps + max(offset, 0)] = source
    return result


def _block_diag(*blocks: Array) -> Array:
    blocks = tuple(np.atleast_2d(block) for block in blocks)
    result = np.zeros(np.sum([block.shape for block in blocks], axis=0), np.result_type(*blocks))
    row, column = 0, 0
    for block in blocks:
        result[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return result


def _combinations(array: Array, r: int = 2, with_replacement: bool = False) -> Array:
    chosen = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    return np.array(list(chosen(array, r)), array.dtype).reshape(-1, r)


def _cartesian_prod(*arrays: Array) -> Array:
    if len(arrays) == 1:
        return arrays[0]
    return np.array(list(itertools.product(*arrays)), arrays[0].dtype).reshape(-1, len(arrays))


def _cov(array: Array, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Array:
    return np.cov(array, ddof=correction, fweights=fweights, aweights=aweights)


def _cross(a: Array, b: Array, dim: int | None = None) -> Array:
    axis = next(at for at, size in enumerate(a.shape) if size == 3) if dim is None else dim
    return np.cross(a, b, axis=axis)


def _pad(mode: str) -> Reference:
    def reference(array: Array, pad: Sequence[int], _: str = "", value: float | None = None) -> Array:
        sides = [(0, 0)] * (array.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))[::-1]
        words = {"constant_values": value or 0} if mode == "constant" else {}
        if mode == "wrap" and any(side < 0 for one in sides for side in one):
            raise NotImplementedError
        array = np.pad(array, [(max(low, 0), max(high, 0)) for low, high in sides], mode=mode, **words)
        return array[tuple(slice(max(-low, 0), min(high, 0) or None) for low, high in sides)]

    return reference


def _shuffle(array: Array, factor: int) -> Array:
    """Channels become pixels: (…, C r², H, W) -> (…, C, H r, W r)."""
    *ahead, channels, height, width = array.shape
    parts = array.reshape(*ahead, channels // factor**2, factor, factor, height, width)
    order = (0, 3, 1, 4, 2)
    moved = parts.transpose(*range(len(ahead)), *(len(ahead) + one for one in order))
    return moved.reshape(*ahead, channels // factor**2, height * factor, width * factor)


def _unshuffle(array: Array, factor: int) -> Array:
    *ahead, channels, height, width = array.shape
    parts = array.reshape(*ahead, channels, height // factor, factor, width // factor, factor)
    moved = parts.transpose(*range(len(ahead)), *(len(ahead) + one for one in (0, 2, 4, 1, 3)))
    return moved.reshape(*ahead, channels * factor**2, height // factor, width // factor)


def _channel_shuffle(array: Array, groups: int) -> Array:
    batch, channels, *size = array.shape
    return array.reshape(batch, groups, channels // groups, *size).swapaxes(1, 2).reshape(array.shape)


def _nonzero(array: Array, *, as_tuple: bool = False) -> Any:
    if as_tuple:
        return np.nonzero(np.atleast_1d(array))
    return np.argwhere(array)


def _trapezoid(array: Array, x: Array | None = None, *, dx: float = 1.0, dim: int = -1) -> Array:
    array = np.moveaxis(array, dim, -1)
    if x is not None:
        widths = np.diff(x if x.ndim == 1 else np.moveaxis(x, dim, -1))
    return ((array[..., 1:] + array[..., :-1]) / 2 * (dx if x is None else widths)).sum(axis=-1)


def _bincount(array: Array, *, weights: Array | None = None, minlength: int = 0) -> Array:
    return np.bincount(array, weights, minlength)


def _bucketize(array: Array, boundaries: Array, *, out_int32: bool = False, right: bool = False) -> Array:
    return np.searchsorted(boundaries, array, side="right" if right else "left")


def _isin(array: Array, test: Array, *, assume_unique: bool = False, invert: bool = False) -> Array:
    return np.isin(array, test, invert=invert)


def _each(function: Callable[[float], float]) -> Reference:
    """Return a function of Python's math for every element; outside its domain it is infinite."""

    def one(value: float) -> float:
        try:
            return function(float(value))
        except ValueError:
            return math.inf

    return lambda array: np.vectorize(one, otypes=[np.float64])(array)


def _sigmoid(array: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-1.0 * array))


def _xlogy(x: Array, y: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(y), np.nan, np.where(x == 0, 0.0, x * np.log(y)))


def _gelu(array: Array, *, approximate: str = "none") -> Array:
    if approximate == "tanh":
        return 0.5 * array * (1 + np.tanh(math.sqrt(2 / math.pi) * (array + 0.044715 * array**3)))
    return 0.5 * array * (1 + _each(math.erf)(array / math.sqrt(2)))


def _glu(array: Array, dim: int = -1) -> Array:
    first, second = np.split(array, 2, axis=dim)
    return first * _sigmoid(second)


def _hardshrink(array: Array, *, lambd: float = 0.5) -> Array:
    return np.where((array > lambd) | (array < -lambd), array, 0)


def _softshrink(array: Array, *, lambd: float = 0.5) -> Array:
    return np.where(array > lambd, array - lambd, np.where(array < -lambd, array + lambd, 0))


def _hardtanh(array: Array, *, min_val: float = -1.0, max_val: float = 1.0) -> Array:
    low, high = (int(end) for end in (min_val, max_val)) if array.dtype.kind == "i" else (min_val, max_val)
    return np.clip(array, low, high)


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    result = x @ np.swapaxes(weight, -1, -2) if weight.ndim > 1 else x @ weight
    return result if bias is None else result + bias


def _bilinear(x: Array, y: Array, weight: Array, bias: Array | None = None) -> Array:
    result = np.einsum("...i,oij,...j->...o", x, weight, y)
    return result if bias is None else result + bias


def _rounded_to(dtype: Any) -> Reference:
    return lambda array, **_: array.astype(dtype)


def _filled(value: Any) -> Reference:
    return lambda array, *_, dtype=None, **__: np.full(array.shape, value, array.dtype if dtype is None else dtype)


def _new(value: Any) -> Reference:
    def reference(array: Array, size: Sequence[int], *, dtype: Any = None, **_: Any) -> Array:
        return np.full(tuple(size), value, array.dtype if dtype is None else dtype)

    return reference


def _made(value: Any) -> Reference:
    return lambda size, *_, dtype=None, **__: np.full(tuple(size), value, dtype)


def _arange(start: float, end: float | None = None, step: float = 1, *, dtype: Any = None, **_: Any) -> Array:
    start, end = (0, start) if end is None else (start, end)
    if np.dtype(dtype).kind == "i":  # torch counts the steps before it cuts start and step
        return int(start) + int(step) * np.arange(math.ceil((end - start) / step), dtype=dtype)
    return np.arange(start, end, step, dtype=dtype)


def _linspace(start: Any, end: Any, steps: int, *, dtype: Any = None, **_: Any) -> Array:
    """Integers are cut, the ends too, and not rounded down as NumPy does."""
    if np.dtype(dtype).kind == "i":
        return np.trunc(np.linspace(np.trunc(start), np.trunc(end), steps)).astype(dtype)
    return np.linspace(start, end, steps, dtype=dtype)


def _eye(n: int, m: int | None = None, *, dtype: Any = None, **_: Any) -> Array:
    return np.eye(n, m, dtype=dtype)


def _lerp(start: Array, end: Array, weight: Any) -> Array:
    return start + weight * (end - start)


def _cdist(x: Array, y: Array, p: float = 2.0, *_: Any, **__: Any) -> Array:
    distance = np.abs(x[..., :, None, :] - y[..., None, :, :])
    if p == 0:
        return (distance != 0).sum(axis=-1).astype(distance.dtype)
    return distance.max(axis=-1) if p == math.inf else (distance**p).sum(axis=-1) ** (1 / p)


def _dist(x: Array, y: Array, p: float = 2.0) -> Array:
    distance = np.abs(x - y)
    return distance.max() if p == math.inf else (distance**p).sum() ** (1 / p)


def _flip(array: Array, dims: Any) -> Array:
    return np.flip(array, dims)


def _renorm(array: Array, p: float, dim: int, maxnorm: float) -> Array:
    axes = tuple(axis for axis in range(array.ndim) if axis != dim % array.ndim)
    size = np.abs(array)
    norm = size.max(axis=axes, keepdims=True) if p == math.inf else (size**p).sum(axis=axes, keepdims=True) ** (1 / p)
    return np.where(norm > maxnorm, array * maxnorm / (norm + 1e-7), array)


def _repeat_interleave(array: Array, repeats: Any, dim: int | None = None, **_: Any) -> Array:
    return np.repeat(array, repeats, axis=dim)


def _tensordot(a: Array, b: Array, *, dims: Any = 2) -> Array:
    try:
        return np.tensordot(a, b, axes=dims)
    except ValueError:  # torch lets an axis of length 1 meet a longer one
        raise NotImplementedError from None


def _conjugated(array: Array) -> Array:
    return np.conj(np.swapaxes(array, -1, -2)) if array.ndim > 1 else np.conj(array)


def _matrix_norm(array: Array, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **_: Any) -> Array:
    return np.linalg.norm(array, ord, tuple(dim), keepdim)


def _take_along_dim(array: Array, index: Array, dim: int | None = None) -> Array:
    if dim is None:
        return array.reshape(-1)[index.reshape(-1)]
    shape = [
        max(a, b) if axis != dim % array.ndim else None
        for axis, (a, b) in enumerate(zip(array.shape, index.shape, strict=True))
    ]

    def grown(one: Array) -> Array:
        return np.broadcast_to(one, [old if new is None else new for new, old in zip(shape, one.shape, strict=True)])

    return np.take_along_axis(grown(array), grown(index), dim)


def _at_least(function: Callable[[Array], Array]) -> Reference:
    return lambda given: [function(one) for one in given] if isinstance(given, (list, tuple)) else function(given)


def _einsum(operands: Sequence[Array], equation: str) -> Array:
    """torch sums over an ellipsis that the result does not name; NumPy refuses."""
    given, _, wanted = equation.partition("->")
    if "..." in given and "..." not in wanted:
        raise NotImplementedError
    return np.einsum(equation, *operands)


def _masked(function: Callable[..., Array], of_nothing: Callable[[Any], Any]) -> Reference:
    """Return a reduction of what a mask leaves. of_nothing: dtype -> the result where it leaves nothing."""

    def reference(
        array: Array, dim: Any = None, *, keepdim: bool = False, dtype: Any = None, mask: Any = None
    ) -> Array:
        array = array if dtype is None else array.astype(dtype)
        kept = np.ones(array.shape, bool) if mask is None else np.broadcast_to(mask, array.shape)
        filled = np.where(kept, array, np.asarray(of_nothing(array.dtype), array.dtype))
        axis = dim if dim is None or isinstance(dim, int) else tuple(dim) or None
        return function(filled, axis=axis if array.ndim else None, keepdims=keepdim and array.ndim > 0)

    return reference


def _lowest(dtype: Any) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    return np.inf if dtype.kind == "f" else np.iinfo(dtype).max


def _same(array: Array, *_: Any, **__: Any) -> Array:
    return array


def _safe_softmax(array: Array, *, dim: int, dtype: Any = None) -> Array:
    """A row in which all is masked gives zeros."""
    array = array.astype(np.float64)
    empty = (array == -np.inf).all(axis=dim, keepdims=True)
    return np.where(empty, 0, _softmax(np.where(empty, 0, array), dim, dtype=dtype))


def _fft(function: Reference) -> Reference:
    """Return one of numpy.fft's functions with torch's names for its arguments."""

    def reference(array: Array, n: Any = None, dim: Any = None, norm: str | None = None, **words: Any) -> Array:
        size = words.get("s", n)
        if function in ONE_AXIS:
            return function(array, size, -1 if dim is None else dim, norm)
        whole = tuple(range(-2, 0)) if function in TWO_AXES else None
        axes = whole if dim is None else ((dim,) if isinstance(dim, int) else tuple(dim))
        size = (size,) if isinstance(size, int) else size
        if size is not None and dim is None:
            axes = tuple(range(-len(size), 0))
        return function(array, size, axes, norm)

    return reference


ONE_AXIS = (np.fft.fft, np.fft.ifft, np.fft.rfft, np.fft.irfft, np.fft.hfft, np.fft.ihfft)
TWO_AXES = (np.fft.fft2, np.fft.ifft2, np.fft.rfft2, np.fft.irfft2)


def _spread(function: Callable[..., Array]) -> Reference:
    """Return the standard deviation or the variance, divided by n - correction."""

    def reference(
        array: Array, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
    ) -> Array:
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        axis = dim if dim is None or isinstance(dim, int) else tuple(dim) or None
        ddof = (1 if unbiased else 0) if correction is None else correction
        return function(array, axis=axis, ddof=ddof, keepdims=keepdim)

    return reference


# Operator, and its variant where the database has several -> reference.
NUMPY: dict[str, Reference] = {
    # arithmetic
    "mul": np.multiply,
    "div": _divide,
    "true_divide": np.true_divide,
    "rsub": lambda a, b, *, alpha=1: b - _scaled(alpha, a),
    "__radd__": _reversed(np.add),
    "__rdiv__": _reversed(np.true_divide),
    "__rmul__": _reversed(np.multiply),
    "__rand__": _reversed(np.bitwise_and),
    "__ror__": _reversed(np.bitwise_or),
    "__rxor__": _reversed(np.bitwise_xor),
    "bitwise_left_shift": np.left_shift,
    "bitwise_right_shift": np.right_shift,
    "__rmod__": _reversed(np.mod),
    "__rsub__": _reversed(np.subtract),
    "__rmatmul__": _reversed(np.matmul),
    "addcmul": lambda c, a, b, *, value=1: c + _scaled(value, a * b),
    "addcdiv": lambda c, a, b, *, value=1: c + value * (a / b),
    "atan2": np.arctan2,
    "copysign": np.copysign,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "hypot": np.hypot,
    "ldexp": lambda a, b: a * 2.0**b,
    "lerp": _lerp,
    "logaddexp": np.logaddexp,
    "logaddexp2": np.logaddexp2,
    "xlogy": _xlogy,
    "complex": lambda a, b: a + 1j * b,
    "polar": lambda a, b: a * np.exp(1j * b),
    "view_as_complex": lambda a: a[..., 0] + 1j * a[..., 1],
    "view_as_real": lambda a: np.stack([a.real, a.imag], axis=-1),
    # products
    "addmm": _product(np.matmul),
    "addmv": _product(np.matmul),
    "baddbmm": _product(np.matmul),
    "addr": _product(np.outer),
    "bmm": np.matmul,
    "mm": np.matmul,
    "mv": np.matmul,
    "matmul": np.matmul,
    "dot": np.dot,
    "vdot": np.vdot,
    "inner": np.inner,
    "outer": np.outer,
    "kron": np.kron,
    "tensordot": _tensordot,
    "einsum": _einsum,
    "cross": _cross,
    "trace": np.trace,
    "nn.functional.linear": _linear,
    "nn.functional.bilinear": _bilinear,
    "nn.functional.conv1d": _conv(1),
    "nn.functional.conv2d": _conv(2),
    "nn.functional.conv3d": _conv(3),
    "nn.functional.scaled_dot_product_attention": _attention,
    # sums, extremes, order
    "sum_to_size": _sum_to_size,
    "cumsum": _cumulated(np.cumsum),
    "cumprod": _cumulated(np.cumprod),
    "cummax": _running(np.maximum.accumulate),
    "cummin": _running(np.minimum.accumulate),
    "max.reduction_no_dim": _extreme(np.max),
    "max.reduction_with_dim": _extreme(np.max),
    "min.reduction_no_dim": _extreme(np.min),
    "min.reduction_with_dim": _extreme(np.min),
    "std": _spread(np.std),
    "var": _spread(np.var),
    "median": _median,
    "kthvalue": _kthvalue,
    "sort": _sorted,
    "msort": lambda array: np.sort(array, axis=0),
    "topk": _topk,
    "logsumexp": _logsumexp,
    "isin": _isin,
    "bincount": _bincount,
    "bucketize": _bucketize,
    "cov": _cov,
    "corrcoef": np.corrcoef,
    "cdist": _cdist,
    "dist": _dist,
    "renorm": _renorm,
    "trapezoid": _trapezoid,
    "trapz": _trapezoid,
    "nonzero": _nonzero,
    "masked.sum": _masked(np.sum, lambda dtype: 0),
    "masked.prod": _masked(np.prod, lambda dtype: 1),
    "masked.amax": _masked(np.max, _lowest),
    "masked.amin": _masked(np.min, _highest),
    # views and copies of the same elements
    "alias_copy": _same,
    "contiguous": _same,
    "resolve_conj": _same,
    "resolve_neg": _same,
    "as_strided": _as_strided,
    "as_strided_copy": _as_strided,
    "atleast_1d": _at_least(np.atleast_1d),
    "atleast_2d": _at_least(np.atleast_2d),
    "atleast_3d": _at_least(np.atleast_3d),
    "chunk": _chunk,
    "unsafe_chunk": _chunk,
    "split": _split,
    "unsafe_split": _split,
    "split_with_sizes": _split,
    "split_with_sizes_copy": _split,
    "hsplit": _sections(1),
    "vsplit": _sections(0),
    "dsplit": _sections(2),
    "diag_embed": _diag_embed,
    "diagonal": _diagonal,
    "diagonal_copy": _diagonal,
    "linalg.diagonal": lambda a, *, offset=0, dim1=-2, dim2=-1: np.diagonal(a, offset, dim1, dim2),
    "expand": _expand,
    "expand_copy": _expand,
    "expand_as": lambda a, b: np.broadcast_to(a, b.shape),
    "flip": _flip,
    "fliplr": np.fliplr,
    "flipud": np.flipud,
    "rot90": lambda a, k=1, dims=(0, 1): np.rot90(a, k, dims),
    "fft.fftshift": lambda a, dim=None: np.fft.fftshift(a, dim),
    "fft.ifftshift": lambda a, dim=None: np.fft.ifftshift(a, dim),
    "movedim": np.moveaxis,
    "narrow": lambda a, dim, start, length: a.take(range(int(start), int(start) + length), axis=dim),
    "narrow_copy": lambda a, dim, start, length: a.take(range(int(start), int(start) + length), axis=dim),
    "permute_copy": lambda a, dims: np.transpose(a, dims),
    "reshape": _shape,
    "view": _shape,
    "reshape_as": lambda a, b: a.reshape(b.shape),
    "view_as": lambda a, b: a.reshape(b.shape),
    "select": lambda a, dim, index: a.take(index, axis=dim),
    "slice": _slice,
    "t": np.transpose,
    "t_copy": np.transpose,
    "T": np.transpose,
    "H": _conjugated,
    "mT": lambda a: np.swapaxes(a, -1, -2),
    "mH": _conjugated,
    "transpose_copy": lambda a, one, other: np.swapaxes(a, one, other) if a.ndim else a,
    "unflatten": lambda a, dim, sizes: a.reshape(*a.shape[: dim % a.ndim], *sizes, *a.shape[dim % a.ndim + 1 :]),
    "unfold": _unfold,
    "unfold_copy": _unfold,
    "unsqueeze": lambda a, dim: np.expand_dims(a, dim),
    "unsqueeze_copy": lambda a, dim: np.expand_dims(a, dim),
    "repeat_interleave": _repeat_interleave,
    "meshgrid.list_of_tensors": lambda arrays, *, indexing: np.meshgrid(*arrays, indexing=indexing),
    "tril": lambda a, diagonal=0: np.tril(a, diagonal),
    "triu": lambda a, diagonal=0: np.triu(a, diagonal),
    # joining
    "stack": lambda arrays, dim=0: np.stack(arrays, dim),
    "hstack": lambda arrays: np.hstack(arrays),
    "vstack": lambda arrays: np.vstack(arrays),
    "dstack": lambda arrays: np.dstack(arrays),
    "block_diag": _block_diag,
    "cartesian_prod": _cartesian_prod,
    "combinations": _combinations,
    # indexing
    "__getitem__": lambda a, index: a[index],
    "gather": _gather,
    "take": lambda a, index: a.reshape(-1)[index],
    "take_along_dim": _take_along_dim,
    "index_select": lambda a, dim, index: np.take(np.atleast_1d(a), index, axis=dim).reshape(
        np.shape(a) if np.ndim(a) == 0 else np.take(a, index, axis=dim).shape
    ),
    "index_fill": lambda a, dim, index, value: _written(a, dim, index, value),
    "index_copy": lambda a, dim, index, source: _written(a, dim, index, source),
    "index_add": lambda a, dim, index, source, *, alpha=1: _written(a, dim, index, source, "add", alpha),
    "index_put": _index_put,
    "put": _put,
    "scatter": _scattered(lambda old, new: new),
    "scatter_add": _scattered(lambda old, new: old + new),
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "diagonal_scatter": _diagonal_scatter,
    "masked_fill": lambda a, mask, value: np.where(mask, np.asarray(value, a.dtype), a),
    "masked_select": lambda a, mask: np.broadcast_arrays(a, mask)[0][np.broadcast_arrays(a, mask)[1]],
    "masked_scatter": _masked_scatter,
    "nn.functional.embedding": lambda table, index, **_: table[index],
    # new tensors and other dtypes
    "arange": _arange,
    "linspace": _linspace,
    "eye": _eye,
    "full": lambda size, value, *, dtype=None, **_: np.full(tuple(size), value, dtype),
    "full_like": lambda a, value, *, dtype=None, **_: np.full(a.shape, value, a.dtype if dtype is None else dtype),
    "new_full": lambda a, size, value, *, dtype=None, **_: np.full(
        tuple(size), value, a.dtype if dtype is None else dtype
    ),
    "ones": _made(1),
    "zeros": _made(0),
    "ones_like": _filled(1),
    "zeros_like": _filled(0),
    "zero_": _filled(0),
    "new_ones": _new(1),
    "new_zeros": _new(0),
    "scalar_tensor": lambda value, *, dtype=None, **_: np.array(value, dtype),
    "bool": _rounded_to(bool),
    "double": _rounded_to(np.float64),
    "float": _rounded_to(np.float32),
    "half": _rounded_to(np.float16),
    "bfloat16": _rounded_to(np.float64),
    "cfloat": _rounded_to(np.complex64),
    "cdouble": _rounded_to(np.complex128),
    # functions of one number
    "erf": _each(math.erf),
    "erfc": _each(math.erfc),
    "lgamma": _each(math.lgamma),
    "sigmoid": _sigmoid,
    "i0": np.i0,
    "nn.functional.gelu": _gelu,
    "nn.functional.glu": _glu,
    "nn.functional.hardshrink": _hardshrink,
    "nn.functional.softshrink": _softshrink,
    "nn.functional.hardtanh": _hardtanh,
    "nn.functional.hardswish": lambda a: a * np.clip(a + 3, 0, 6) / 6,
    "nn.functional.leaky_relu": lambda a, negative_slope=0.01: np.where(a > 0, a, a * negative_slope),
    "nn.functional.relu6": lambda a: np.clip(a, 0, 6),
    # Fourier transforms
    "fft.fft": _fft(np.fft.fft),
    "fft.fft2": _fft(np.fft.fft2),
    "fft.fftn": _fft(np.fft.fftn),
    "fft.ifft": _fft(np.fft.ifft),
    "fft.ifft2": _fft(np.fft.ifft2),
    "fft.ifftn": _fft(np.fft.ifftn),
    "fft.rfft": _fft(np.fft.rfft),
    "fft.rfft2": _fft(np.fft.rfft2),
    "fft.rfftn": _fft(np.fft.rfftn),
    "fft.irfft": _fft(np.fft.irfft),
    "fft.irfft2": _fft(np.fft.irfft2),
    "fft.irfftn": _fft(np.fft.irfftn),
    "fft.hfft": _fft(np.fft.hfft),
    "fft.ihfft": _fft(np.fft.ihfft),
    # layers and losses
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "torch.ops.aten._safe_softmax.default": _safe_softmax,
    "nn.functional.softmin": lambda a, dim, *, dtype=None: _softmax(-a, dim, dtype=dtype),
    "nn.functional.normalize": _normalize,
    "nn.functional.cosine_similarity": _cosine_similarity,
    "nn.functional.batch_norm": _batch_norm,
    "nn.functional.adaptive_avg_pool1d": _adaptive_avg_pool(1),
    "nn.functional.adaptive_avg_pool2d": _adaptive_avg_pool(2),
    "nn.functional.adaptive_avg_pool3d": _adaptive_avg_pool(3),
    "nn.functional.pixel_shuffle": lambda a, *, upscale_factor: _shuffle(a, upscale_factor),
    "nn.functional.pixel_unshuffle": lambda a, *, downscale_factor: _unshuffle(a, downscale_factor),
    "nn.functional.channel_shuffle": _channel_shuffle,
    "constant_pad_nd": lambda a, pad, value=0: _pad("constant")(a, pad, value=value),
    "nn.functional.pad.constant": _pad("constant"),
    "nn.functional.pad.reflect": _pad("reflect"),
    "nn.functional.pad.replicate": _pad("edge"),
    "nn.functional.pad.circular": _pad("wrap"),
    "nn.functional.nll_loss": _nll_loss,
    "nn.functional.binary_cross_entropy": _loss(_binary_cross_entropy),
    "nn.functional.binary_cross_entropy_with_logits": _loss(_with_logits),
    "nn.functional.huber_loss": _loss(_huber),
    "nn.functional.kl_div": _kl_div,
    "nn.functional.soft_margin_loss": _loss(_soft_margin),
    "nn.functional.margin_ranking_loss": _loss(_margin_ranking),
    "nn.functional.hinge_embedding_loss": _loss(_hinge_embedding),
    # linear algebra, whose results are determined
    "linalg.det": np.linalg.det,
    "logdet": lambda a: np.log(np.linalg.det(a)),
    "linalg.slogdet": lambda a: tuple(np.linalg.slogdet(a)),
    "linalg.inv": np.linalg.inv,
    "linalg.inv_ex": lambda a, **_: (np.linalg.inv(a), None),
    "linalg.svdvals": lambda a, **_: np.linalg.svd(a, compute_uv=False),
    "linalg.matrix_power": lambda a, n: np.linalg.matrix_power(a, n),
    "linalg.multi_dot": lambda arrays: np.linalg.multi_dot(arrays) if len(arrays) > 1 else arrays[0],
    "linalg.matrix_norm": _matrix_norm,
    "linalg.eigvalsh": lambda a, *, UPLO="L": np.linalg.eigvalsh(a, UPLO),
    "linalg.cholesky": lambda a, *, upper=False: _conjugated(np.linalg.cholesky(a)) if upper else np.linalg.cholesky(a),
}

# Where the database's own reference, or ours, does not fit; the CPU in float64 or complex128 stands in.
UNFIT = {
    "nn.functional.pdist": "it needs SciPy",
    "nn.functional.conv_transpose1d": "it is torch's own convolution",
    "nn.functional.conv_transpose2d": "it is torch's own convolution",
    "nn.functional.conv_transpose3d": "it is torch's own convolution",
    "masked.argmax": "it takes masks as tensors alone",
    "masked.argmin": "it takes masks as tensors alone",
    "masked.var": "it takes masks as tensors alone",
    "masked.std": "it takes masks as tensors alone",
    "masked.mean": "it takes masks as tensors alone",
}
# Operator -> dtypes that NumPy's function does not have.
NOT_IN: dict[str, tuple[str, ...]] = {
    "logaddexp": ("complex64",),
}
# Results that are determined up to a factor of modulus 1: the database's own processing, which gradients need anyway,
# makes them comparable.
GAUGE = {"linalg.eig", "linalg.eigh", "linalg.svd", "svd", "svd_lowrank", "pca_lowrank"}
# Without a second run on values that are not contiguous, and why.
STRIDED = {
    "as_strided": "it reads the storage, whatever the strides of its input",
    "as_strided.partial_views": "it reads the storage, whatever the strides of its input",
    "as_strided_copy": "it reads the storage, whatever the strides of its input",
    "as_strided_scatter": "it reads the storage, whatever the strides of its input",
    "view_as_complex": "a pair of numbers must lie side by side",
    "sparse.sampled_addmm": "a sparse tensor has no strides",
    "sparse.mm.reduce": "a sparse tensor has no strides",
}
# Without a comparison of backward with finite differences, and why.
NO_DIFFERENCES = {
    "as_strided_scatter": "elements of its view overlap",
    "bfloat16": "its result is coarser than a finite difference",
    "float": "its result is coarser than a finite difference",
    "half": "its result is coarser than a finite difference",
    "cfloat": "its result is coarser than a finite difference",
    "chalf": "its result is coarser than a finite difference",
    "nn.functional.max_unpool1d": "its sample names the same place twice, and the last of them wins",
    "nn.functional.max_unpool2d": "its sample names the same place twice, and the last of them wins",
    "linalg.norm.subgradients_at_zero": "a norm has no derivative at zero",
    "nn.functional.max_unpool3d": "its sample names the same place twice, and the last of them wins",
    "__rpow__": "its sample has negative bases, whose powers are no numbers",
    "div.trunc_rounding": "it jumps, and a sample lies beside a jump",
    "div.floor_rounding": "it jumps, and a sample lies beside a jump",
    "fmod": "it jumps, and a sample lies beside a jump",
    "remainder": "it jumps, and a sample lies beside a jump",
    "sparse.sampled_addmm": "gradcheck does not take sparse results",
}
