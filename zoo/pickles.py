"""Reading pickles without running what they ask for."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

Global = tuple[str, str]


class UnsafePickle(ValueError):
    """A pickle asks for a class or function that is not allowed."""


class Inert:
    """What stands for an object of a class that is not allowed: its data, none of its behaviour.

    `module` and `name` are those of the class or function, `args` and `kwargs` what it would have
    been called with, `state` what its attributes would have been set from, and `items` the entries
    of a list or dictionary of its own class.
    """

    module: ClassVar[str] = ""
    name: ClassVar[str] = ""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: dict[Any, Any]

    # Not __init__: pickles may make objects with __new__ alone.
    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Keep the arguments."""
        self = super().__new__(cls)
        self.args, self.kwargs, self.state, self.items = args, kwargs, None, {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Keep an entry of a list."""
        self.items[len(self.items)] = value

    def __repr__(self) -> str:
        return f"Inert({self.module}.{self.name})"


class Constructor:
    """An allowed callable; without attributes, so that a pickle can call it but not change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the callable returns."""
        return self._call(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickle(f"the pickle tries to change {self._call.__qualname__}: nothing was run")


class NumberType:
    """The dtype of an array to come: plain numbers or text, in either byte order.

    numpy's own would take flags from the pickle, with which bytes pass for pointers to objects.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"|": "="}.get(state[1], state[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype; UnsafePickle for objects and records."""
        found = np.dtype(self.code)
        if found.kind not in "biufcSU":
            raise UnsafePickle(
                f"an array of dtype {self.code!r} can hold anything: only numbers and text are read"
            )
        return found.newbyteorder(self.order)


class PickledArray(np.ndarray[Any, Any]):
    """An array that takes its shape and numbers after it was made, as numpy pickles them."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, number, fortran, data = state
        super().__setstate__((version, shape, number.dtype, fortran, data))


def empty_array(kind: Any, shape: Any, code: Any) -> PickledArray:
    """What numpy's `_reconstruct` returns, whatever class of array the pickle names."""
    return PickledArray((0,), np.uint8)


def array(data: bytes, number: NumberType, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """numpy's `_frombuffer`: an array from raw bytes."""
    return np.frombuffer(data, number.dtype).reshape(shape, order=order).copy(order)


def scalar(number: NumberType, data: bytes) -> Any:
    """numpy's `scalar`: one number from raw bytes."""
    return np.frombuffer(data, number.dtype, 1)[0]


def storage(data: bytes) -> Any:
    """torch's `_load_from_bytes`, by the reader of torch that runs nothing; on the CPU."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafePickle("the bytes of a tensor hold more than numbers: none were run") from error


def tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """torch's `_rebuild_tensor_v2`, without gradient and hooks."""
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def parameter(data: Tensor, requires_grad: bool = True, *rest: Any) -> nn.Parameter:
    """torch's `_rebuild_parameter`, without hooks and attributes."""
    return nn.Parameter(data, requires_grad)


def encoded(text: str, encoding: str = "latin1") -> bytes:
    """The bytes that protocol 2 writes as text."""
    if encoding != "latin1":
        raise UnsafePickle(f"bytes in encoding {encoding!r}: pickles write latin1")
    return text.encode(encoding)


ARRAYS: dict[str, Any] = {
    "multiarray._reconstruct": empty_array,
    "multiarray.scalar": scalar,
    "numeric._frombuffer": array,
}
BUILTINS: tuple[type, ...] = (set, frozenset, slice, complex, bytearray)
TORCH_DTYPES = {
    repr(each).removeprefix("torch."): each
    for each in vars(torch).values()
    if isinstance(each, torch.dtype)
}
DEFAULT: Mapping[Global, Any] = MappingProxyType(
    {
        **{
            (f"numpy.{core}.{name.split('.')[0]}", name.split(".")[1]): call
            for core in ("core", "_core")
            for name, call in ARRAYS.items()
        },
        ("numpy", "ndarray"): empty_array,
        ("numpy", "dtype"): NumberType,
        **{
            (module, each.__name__): each
            for module in ("builtins", "__builtin__")
            for each in BUILTINS
        },
        ("_codecs", "encode"): encoded,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): parameter,
        ("torch.storage", "_load_from_bytes"): storage,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        **{("torch", name): dtype for name, dtype in TORCH_DTYPES.items()},
    }
)


class Reader(pickle.Unpickler):
    """An unpickler that finds classes and functions in a table instead of importing them."""

    def __init__(self, file: io.BytesIO, allowed: Mapping[Global, Any], inert: bool):
        super().__init__(file)
        self.allowed, self.inert = allowed, inert
        self.stand_ins: dict[Global, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What the table has, a class of `Inert`, or UnsafePickle."""
        key = (module, name)
        if key in self.allowed:
            found = self.allowed[key]
            return Constructor(found) if callable(found) else found
        if not self.inert:
            raise UnsafePickle(
                f"the pickle asks for {module}.{name}, which is not on the list of harmless "
                f"constructors: nothing of it was run; do not load it with anything else unless "
                f"you trust its source"
            )
        if key not in self.stand_ins:
            self.stand_ins[key] = type("Inert", (Inert,), {"module": module, "name": name})
        return self.stand_ins[key]


def read_pickle(
    data: bytes | str | Path,
    allowed: Mapping[Global, Callable[..., Any] | torch.dtype] = DEFAULT,
    *,
    inert: bool = False,
) -> Any:
    """The object in a pickle (bytes, or the path of a file), importing and running nothing of it.

    `allowed` maps (module, name) to what is called in place of that class or function; the default
    covers plain Python data, numpy arrays of numbers and torch tensors. Anything else raises
    UnsafePickle, or with `inert` becomes an `Inert` record. Raises ValueError for what is not a
    pickle or is cut off, FileNotFoundError for a missing file. Hooks, gradients and attributes of
    tensors are dropped. Memory is not limited: a small file can ask for much.
    """
    content = data if isinstance(data, bytes) else Path(data).read_bytes()
    where = "the data" if isinstance(data, bytes) else str(data)
    try:
        return Reader(io.BytesIO(content), allowed, inert).load()
    except UnsafePickle as error:
        raise UnsafePickle(f"{where}: {error}") from error
    # Damaged opcodes surface as almost anything: IndexError, TypeError, UnpicklingError, ..
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{where}: not a pickle that can be read ({reason})") from error
