"""Run operators of torch's database and compare: value, repeat, strides, gradient. Needs torch, NumPy, expecttest."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from torchdock.inside import operators
from torchdock.inside.operators import Fault, Proof, laws, references

WIDE = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}
NUMPY_DTYPES = {
    torch.float64: np.float64,
    torch.complex128: np.complex128,
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
}
# rtol and atol: those that torch's own tests compare with where an operator has none of its own.
TOLERANCES = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex32: (1e-3, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex128: (1e-7, 1e-7),
}
# A gradient may be off by so many times what a result may: backward is several operators, the database says nothing.
BACKWARD = 10
# torch's own tests that compare results with references; the database may give each a tolerance.
COMPARING = {None, "TestCommon", "TestUnaryUfuncs", "TestBinaryUfuncs", "TestReductions", "TestMasked", "TestFFT"}


@functools.cache
def database() -> dict[str, Any]:
    """Return torch's operator database by name: "add", "max.reduction_with_dim". It takes two seconds to import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    return {op.full_name: op for op in op_db}


@functools.cache
def known() -> operators.Facts:
    """Return known.json."""
    return operators.facts()


def dtypes(op: Any, device: str) -> list[torch.dtype]:
    """Return those of DTYPES that the operator supports on the device's type."""
    supported = op.supported_dtypes(device)
    return [dtype for name in operators.DTYPES if (dtype := getattr(torch, name)) in supported]


def tolerance(op: Any, dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Return (rtol, atol): the widest that the database, or else torch's tests or known.json, has for this operator."""
    from torch.testing._internal.common_device_type import precisionOverride, toleranceOverride

    rtol, atol = TOLERANCES[dtype]
    for decorator in op.decorators:
        if hasattr(decorator, "cls_name"):
            where = decorator.device_type
            elsewhere = where is not None and device not in ([where] if isinstance(where, str) else where)
            if elsewhere or decorator.cls_name not in COMPARING or (decorator.dtypes and dtype not in decorator.dtypes):
                continue
            inner = decorator.decorators
        else:
            inner = [decorator]
        for one in inner:
            if isinstance(one, toleranceOverride) and dtype in one.d:
                rtol, atol = max(rtol, one.d[dtype].rtol), max(atol, one.d[dtype].atol)
            elif isinstance(one, precisionOverride) and dtype in one.d:
                atol = max(atol, one.d[dtype])
    own = known().tolerances.get((op.full_name, str(dtype).removeprefix("torch.")))
    return (max(rtol, own[0]), max(atol, own[1])) if own else (rtol, atol)


def mapped(value: Any, function: Callable[[Any], Any], key: str = "") -> Any:
    """Return an argument with every tensor, dtype and device in it replaced."""
    if isinstance(value, (torch.Tensor, torch.dtype, torch.device)) or (key == "device" and value is not None):
        return function(torch.device(value) if isinstance(value, str) else value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(mapped(one, function) for one in value)
    if isinstance(value, dict):
        return {name: mapped(one, function, name) for name, one in value.items()}
    return value


def flat(value: Any) -> list[Any]:
    """Return the parts of a result: tensors, arrays, numbers."""
    if isinstance(value, (list, tuple)):
        return [part for one in value for part in flat(one)]
    return [value]


class Call:
    """The arguments of one sample: pristine, to be copied for every run, as some operators write into them."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample
        self.arguments = (sample.input, tuple(sample.args), dict(sample.kwargs))

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            if isinstance(value, torch.Tensor):
                return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
            if isinstance(value, (list, tuple)):
                return f"({', '.join(map(shown, value))})"
            return str(value)[:40]

        first, args, words = self.arguments
        named = [f"{name}={shown(value)}" for name, value in words.items()]
        return ", ".join([*map(shown, (first, *args)), *named])[:200]

    def copied(self, function: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> Any:
        """Return (input, args, kwargs) with copies of all tensors, as leaves that need gradients where these do."""

        def copy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            with torch.no_grad():
                return function(value.detach().clone()).requires_grad_(value.requires_grad)

        return mapped(self.arguments, copy)

    def wide(self) -> Any:
        """Return (input, args, kwargs) on the CPU in float64 and complex128."""

        def widen(value: Any) -> Any:
            if isinstance(value, torch.dtype):
                return WIDE.get(value, value)
            if isinstance(value, torch.device):
                return torch.device("cpu")
            moved = value.detach().to("cpu", WIDE.get(value.dtype, value.dtype), copy=True)
            return moved.requires_grad_(value.requires_grad)

        return mapped(self.arguments, widen)

    def on_cpu(self) -> Any:
        """Return (input, args, kwargs) on the CPU, with the same dtypes."""
        return mapped(
            self.arguments,
            lambda one: (
                torch.device("cpu")
                if isinstance(one, torch.device)
                else one.detach().cpu()
                if isinstance(one, torch.Tensor)
                else one
            ),
        )

    def numpy(self) -> Any:
        """Return (input, args, kwargs) as NumPy has them, in float64 and complex128."""

        def convert(value: Any) -> Any:
            if isinstance(value, torch.dtype):
                return NUMPY_DTYPES.get(WIDE.get(value, value), value)
            return array(value) if isinstance(value, torch.Tensor) else value

        return mapped(self.wide(), convert)


def array(tensor: torch.Tensor) -> Any:
    """Return a tensor's values as an array of its own; bfloat16, which NumPy has not, as float32."""
    tensor = tensor.detach()
    if tensor._is_zerotensor():
        return np.zeros(tuple(tensor.shape), array(torch.empty(0, dtype=tensor.dtype)).dtype)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.cpu().resolve_conj().resolve_neg()
    if tensor.dtype in (torch.bfloat16, torch.complex32):
        tensor = tensor.to(torch.float32 if tensor.dtype == torch.bfloat16 else torch.complex64)
    return tensor.numpy().copy()


def rounding(dtype: torch.dtype) -> float:
    """Return the distance from 1 to the next number of the dtype."""
    return float(torch.finfo(dtype).eps)


def difference(
    actual: Any, expected: Any, dtype: torch.dtype, rtol: float, atol: float, roundings: float = 2
) -> str | None:
    """Return how one part of a result differs from its reference, in words; None where it is within the tolerance.

    An element may be off by atol + rtol |expected|, as in torch's tests, or by two roundings of the largest element:
    what is summed to it may have been that large. NumPy compares, as torch's own operators are what is in question.
    """
    a, e = np.asarray(actual), np.asarray(expected)
    if a.shape != e.shape:
        return f"its shape is {a.shape}, the reference's {e.shape}"
    if a.size == 0:
        return None
    if a.dtype.kind in "biu":
        if e.dtype.kind in "fc" and not np.array_equal(e, np.round(e.real)):
            return f"it is {a.dtype}, and the reference has {e.reshape(-1)[0]}"
        bad = a.astype(e.dtype) != e if e.dtype.kind in "fc" else a != e
        allowed: Any = 0
        error: Any = None
    else:
        scale = np.complex128 if "c" in (a.dtype.kind, e.dtype.kind) else np.float64
        narrow = a.dtype if dtype not in (torch.bfloat16,) else np.dtype(np.float32)
        with np.errstate(all="ignore"):
            if e.dtype.kind in "fc" and (e.dtype.kind == "f" or narrow.kind == "c"):
                e = e.astype(narrow)  # what overflows in the dtype does so on both sides
            a, e = a.astype(scale), e.astype(scale)
            error = np.abs(a - e)
            finite = np.isfinite(e)
            largest = np.abs(e[finite]).max() if finite.any() else 0.0
            allowed = np.maximum(atol + rtol * np.abs(e), roundings * rounding(dtype) * largest)
            same = (a == e) | (np.isnan(a) & np.isnan(e))
            if scale == np.complex128:
                same |= ~np.isfinite(a) & ~np.isfinite(e)
            bad = ~same & ~(error <= allowed)
    if not bad.any():
        return None
    at = tuple(int(one) for one in np.argwhere(bad)[0]) if a.ndim else ()
    if error is not None:
        worst = np.where(bad, np.where(np.isfinite(error), error, np.inf), -1)
        at = tuple(int(one) for one in np.unravel_index(int(worst.argmax()), a.shape)) if a.ndim else ()
        limit = np.broadcast_to(allowed, a.shape)[at]
        return (
            f"{int(bad.sum())} of {a.size} elements are off; the worst at {list(at)} is {a[at]:.7g}, the reference "
            f"{e[at]:.7g}: off by {error[at]:.3g}, allowed {limit:.3g}"
        )
    return f"{int(bad.sum())} of {a.size} elements differ; at {list(at)} it is {a[at]}, the reference {e[at]}"


def compared(
    result: Any, expected: Any, dtype: torch.dtype, bounds: tuple[float, float], strict: bool, steps: int = 1
) -> str | None:
    """Return how a result differs from its reference. strict: result dtypes are compared too.

    steps: how many times the tolerance holds; backward is several operators in a row.
    """
    bounds = bounds[0] * steps, bounds[1] * steps
    parts, wanted = flat(result), flat(expected)
    if len(parts) != len(wanted):
        return f"it returns {len(parts)} values, the reference {len(wanted)}"
    for number, (part, want) in enumerate(zip(parts, wanted, strict=True)):
        where = f"result {number}: " if len(parts) > 1 else ""
        if want is None:
            continue
        if isinstance(part, torch.Tensor):
            if strict and isinstance(want, torch.Tensor) and want.dtype not in (part.dtype, WIDE.get(part.dtype)):
                return f"{where}its dtype is {part.dtype}, the reference's {want.dtype}"
            own = part.dtype if part.dtype in TOLERANCES else dtype
            # A result that is wider than its operands is as exact as these were computed in.
            own = dtype if own in (torch.float64, torch.complex128) and dtype in TOLERANCES else own
            got, should = array(part), array(want) if isinstance(want, torch.Tensor) else want
            said = difference(got, should, own if own in TOLERANCES else torch.float32, *bounds, 2 * steps)
        elif isinstance(part, (bool, int, float, complex)):
            said = difference(part, want, dtype if dtype in TOLERANCES else torch.float32, *bounds, 2 * steps)
        else:
            said = None if part == want else f"it is {part}, the reference {want}"
        if said:
            return where + said
    return None


def _by_numpy(function: Callable[..., Any], call: Call) -> Any:
    first, args, words = call.numpy()
    expected = function(first, *args, **words)
    if any(getattr(part, "dtype", None) == np.float16 for part in flat(expected)):
        # NumPy computes functions of truth values in float16; of 0 and 1 in float64.
        first, args, words = mapped_arrays(call.numpy(), lambda one: one.astype(np.int64) if one.dtype == bool else one)
        expected = function(first, *args, **words)
    return expected


def mapped_arrays(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return an argument with every array in it replaced."""
    if isinstance(value, np.ndarray):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(mapped_arrays(one, function) for one in value)
    if isinstance(value, dict):
        return {name: mapped_arrays(one, function) for name, one in value.items()}
    return value


def bits(result: Any) -> list[Any]:
    """Return a result's values, to compare with another run's to the bit."""
    return [array(part).tobytes() if isinstance(part, torch.Tensor) else part for part in flat(result)]


def reference(op: Any, dtype: torch.dtype, device: str) -> tuple[str, Callable[..., Any] | None]:
    """Return what this operator is compared with in this dtype: a key of REFERENCES, and NumPy's function.

    Integers and truth values on the CPU have NumPy or nothing: no other dtype computes the same.
    """
    name = op.full_name
    if name in laws.LAWS:
        return "law", None
    devices, _ = known().apart.get(name, ((), ""))
    if device in devices:
        return "", None
    function = references.NUMPY.get(name)
    if function is None and name not in references.UNFIT:
        own = getattr(op, "ref", None)
        function = own if callable(own) else references.NUMPY.get(op.name)
    if function is not None and str(dtype).removeprefix("torch.") not in references.NOT_IN.get(name, ()):
        return "numpy", function
    if dtype in WIDE:
        return "wide", None
    return ("cpu" if device != "cpu" else ""), None


def seed(number: int) -> None:
    """Start from equal random numbers on every device.

    torch.manual_seed would do the same, and without a GPU keep the stack of each of thousands of calls for later.
    """
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def samples(op: Any, dtype: torch.dtype, device: str, full: bool, *, gradient: bool) -> Iterator[Call]:
    """Yield the database's samples: every one, or the first that has elements."""
    seed(0)
    first = None
    # Not op.sample_inputs, which looks through the stack for the test that asks.
    for sample in op.sample_inputs_func(op, device, dtype, requires_grad=gradient):
        if full:
            yield Call(sample)
            continue
        sizes = [
            one.numel()
            for one in flat((sample.input, sample.args, list(sample.kwargs.values())))
            if isinstance(one, torch.Tensor)
        ]
        first = first or sample
        if sizes and all(sizes) and max(sizes) > 1:
            first = sample
            break
    if not full and first is not None:
        yield Call(first)


def run(op: Any, arguments: Any, start: int = 1) -> Any:
    """Call the operator, from equal random numbers each time."""
    seed(start)
    first, args, words = arguments
    return op(first, *args, **words)


def tensors(arguments: Any) -> list[torch.Tensor]:
    """Return the tensors among arguments that need a gradient."""
    first, args, words = arguments
    return [
        one for one in flat((first, args, list(words.values()))) if isinstance(one, torch.Tensor) and one.requires_grad
    ]


def gradients(call: Call, arguments: Any, result: Any) -> list[Any]:
    """Return the gradients of a result, for a fixed cotangent that is exact in the narrow dtype and in the wide one."""
    outputs = [
        part
        for part in flat(call.sample.output_process_fn_grad(result))
        if isinstance(part, torch.Tensor) and part.requires_grad
    ]
    if not outputs:
        return []
    generator = torch.Generator().manual_seed(2)
    given = []
    for part in outputs:
        wide, exact = (torch.complex128, torch.complex64) if part.is_complex() else (torch.float64, torch.bfloat16)
        cotangent = torch.randn(part.shape, dtype=wide, generator=generator).to(exact)
        given.append(cotangent.to(part.device, part.dtype))
    return list(torch.autograd.grad(outputs, tensors(arguments), given, allow_unused=True))


def prove(name: str, device: str, full: bool) -> Proof:
    """Prove one operator on a device in every dtype that it supports, by one sample each or by all."""
    op, proof = database()[name], Proof(name)
    kind = torch.device(device).type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in laws.LAWS:
            for dtype in dtypes(op, kind):
                _obey(op, dtype, device, proof)
        elif kind not in known().apart.get(name, ((), ""))[0]:
            for dtype in dtypes(op, kind):
                _pair(op, dtype, device, full, proof)
            if op.supports_autograd:
                _gradcheck(op, device, full, proof)
    proof.settle(known(), kind, torch.__version__, full)
    return proof


def _obey(op: Any, dtype: torch.dtype, device: str, proof: Proof) -> None:
    name = str(dtype).removeprefix("torch.")
    proof.references[name] = "law"
    proof.samples += 1
    seed(0)
    try:
        said = laws.LAWS[op.full_name](op, dtype, device)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    if said:
        proof.faults.append(Fault(op.full_name, name, "value", said))


def _pair(op: Any, dtype: torch.dtype, device: str, full: bool, proof: Proof) -> None:
    """Prove an operator in one dtype; at most one fault of each part is told."""
    kind, name = torch.device(device).type, str(dtype).removeprefix("torch.")
    found: dict[str, str] = {}
    used: list[str] = []
    how, function = reference(op, dtype, kind)
    differentiable = dtype in op.supported_backward_dtypes(kind) and op.supports_autograd
    count = 0
    try:
        for count, call in enumerate(samples(op, dtype, device, full, gradient=differentiable), 1):
            for part, said in _sample(op, call, dtype, kind, how, function, count == 1 or full, used):
                found.setdefault(part, f"sample {count} ({call}): {said}")
            proof.gradients += differentiable
    except Exception as error:
        found.setdefault("value", f"the samples cannot be made: {type(error).__name__}: {error}")
    proof.samples += count
    proof.references[name] = used[0] if used else ""
    proof.faults += [Fault(op.full_name, name, part, said) for part, said in found.items()]


def _sample(
    op: Any,
    call: Call,
    dtype: torch.dtype,
    kind: str,
    how: str,
    function: Callable[..., Any] | None,
    strided: bool,
    used: list[str],
) -> Iterator[tuple[str, str]]:
    """Yield (part, what is wrong) of one sample; add to ``used`` the reference that it was compared with."""
    bounds = tolerance(op, dtype if dtype in TOLERANCES else torch.float32, kind)
    part = "value"
    try:
        arguments = call.copied()
        result = run(op, arguments)
        wide = expected = None
        if how == "numpy" and function is not None:
            try:
                with np.errstate(all="ignore"):
                    expected = _by_numpy(function, call)
            except NotImplementedError:
                how = "wide" if dtype in WIDE else ""
        if how == "wide":
            wide = call.wide()
            expected = run(op, wide)
        elif how == "cpu":
            expected = run(op, call.on_cpu())
        gauge = call.sample.output_process_fn_grad if op.full_name in references.GAUGE else lambda value: value
        said = compared(gauge(result), gauge(expected), dtype, bounds, how != "numpy") if how else None
        if said and kind != "cpu" and bits(run(op, call.wide(), 1)) != bits(run(op, call.wide(), 2)):
            return  # It is random, as with dropout: another device draws other numbers.
        if how:
            used.append(how)
        if said:
            yield "value", said
        part = "repeat"
        same = kind == "cpu" or op.full_name not in known().nondeterministic
        if same and bits(run(op, call.copied())) != bits(result):
            yield "repeat", "a second run on the same values gives another result: it is nondeterministic"
        part = "strides"
        if strided and how and op.full_name not in references.STRIDED:
            from torch.testing._internal.common_utils import noncontiguous_like

            again = run(op, call.copied(noncontiguous_like))
            if said := compared(gauge(again), gauge(expected), dtype, bounds, how != "numpy"):
                yield "strides", f"on values that are not contiguous, {said}"
        part = "gradient"
        if dtype in WIDE and dtype in op.supported_backward_dtypes(kind) and tensors(arguments):
            got = gradients(call, arguments, result)
            if wide is None:
                wide = call.wide()
                should = gradients(call, wide, run(op, wide))
            else:
                should = gradients(call, wide, expected)
            if said := compared(got, should, dtype, bounds, True, BACKWARD):
                yield "gradient", said
    except Exception as error:
        yield part, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _function(op: Any, call: Call) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return an operator as a function of positional arguments alone, as gradcheck wants it, and these."""
    first, args, words = call.copied()
    listed = isinstance(first, (list, tuple))
    many = len(first) if listed else 0

    def function(*given: Any) -> Any:
        head = (list(given[:many]), *given[many:]) if many else given
        seed(1)
        return call.sample.output_process_fn_grad(op.gradcheck_wrapper(op.op, *head, **words))

    return function, (*first, *args) if listed else (first, *args)


def _gradcheck(op: Any, device: str, full: bool, proof: Proof) -> None:
    """Compare backward with finite differences in float64 on the device."""
    kind = torch.device(device).type
    if torch.float64 not in op.supported_backward_dtypes(kind) or op.full_name in references.NO_DIFFERENCES:
        return
    call = None
    try:
        for call in samples(op, torch.float64, device, full, gradient=True):
            function, inputs = _function(op, call)
            if not any(isinstance(one, torch.Tensor) and one.requires_grad for one in inputs):
                continue
            torch.autograd.gradcheck(
                function,
                inputs,
                nondet_tol=op.gradcheck_nondet_tol,
                fast_mode=True,
                check_batched_grad=False,
                check_undefined_grad=False,
            )
            proof.gradients += 1
    except Exception as error:
        text = f"sample ({call}): {' '.join(str(error).split())[:300]}"
        proof.faults.append(Fault(op.full_name, "float64", "gradcheck", text))
