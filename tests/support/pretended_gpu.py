"""A CUDA device that does not exist. Its tensors say they are on it, and are computed on the CPU.

They refuse what tensors of a GPU refuse: operations with tensors of the CPU (numbers excepted), an index into
a tensor of the CPU, numpy. So code that leaves something on the wrong device fails without a GPU, too. Nothing
is said of kernels, dtypes and times; nor of what torch decides in C++, where these are tensors of the CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from trl.trainer import base_trainer

GPU = torch.device("cuda", 0)
_TAKE_BOTH = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_"}
_NUMPY = (Tensor.numpy, Tensor.__array__)


class GPUTensor(Tensor):
    """A tensor on the pretended device; `held` is the one of the CPU that has its numbers."""

    held: Tensor
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "GPUTensor":
        made: GPUTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GPUTensor({self.held})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _NUMPY:
            raise TypeError("can't convert a CUDA tensor to numpy: use Tensor.cpu() first")
        if function is Tensor.tolist:
            return args[0].held.tolist()
        if function is Tensor.cpu:
            return moved(args[0], torch.device("cpu"))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Also tensors that are made on the device, without a tensor to begin with, are pretended ones."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, device: torch.device) -> Tensor:
        context.back = tensor.device
        copied = _held(tensor).detach().clone()
        return GPUTensor(copied) if device.type == "cuda" else copied

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return moved(gradient, context.back), None


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor itself, or its copy on the other device."""
    there: Tensor = tensor if tensor.device.type == device.type else _Move.apply(tensor, device)
    return there


def module_on_gpu(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, with all parameters and buffers on the pretended device. Tied ones stay tied."""
    there: dict[Tensor, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_cuda:
                if parameter not in there:
                    tensor = GPUTensor(parameter.detach())
                    there[parameter] = torch.nn.Parameter(tensor, parameter.requires_grad)
                part._parameters[name] = there[parameter]
        for name, buffer in part._buffers.items():
            if buffer is not None and not buffer.is_cuda:
                part._buffers[name] = GPUTensor(buffer)
    return module


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, `device="cuda"` works."""
    _device_constructors()  # torch caches this list, which must hold its own functions and not ours
    with pytest.MonkeyPatch.context() as patch, _Everywhere():
        patch.setattr(Tensor, "to", _moving(Tensor.to))
        patch.setattr(torch.nn.Module, "to", _moving_modules(torch.nn.Module.to))
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _made(getattr(torch, name)))
        for name in ("_lazy_init", "synchronize", "empty_cache", "set_rng_state"):
            patch.setattr(torch.cuda, name, lambda *_: None)
        patch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.zeros(1, dtype=torch.uint8))
        patch.setattr(torch.cuda, "get_device_name", lambda *_: "pretended")
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**40, 2**40))
        yield


def trainers_on_gpu(patch: pytest.MonkeyPatch) -> None:
    """Have trainers that are made inside `pretended_gpu` take the device."""
    patch.setattr(base_trainer._BaseTrainer, "_send_telemetry", lambda self: None)
    device = transformers.TrainingArguments.device.fget
    patch.setattr(transformers.TrainingArguments, "device", property(lambda self: (device(self), GPU)[1]))
    patch.setattr(Accelerator, "device", property(lambda self: GPU))


def _held(value: Any) -> Any:
    return value.held if isinstance(value, GPUTensor) else value


def _computed(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator's result, on the pretended device if an argument lies there or `device` names it.

    C++ asks for the CPU wherever it goes by the device of such an argument, so that is not obeyed.
    """
    name = operator._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _refuse_both(name, tensors)
    device = kwargs.get("device")
    on_gpu = any(tensor.is_cuda for tensor in tensors)
    if name == "aten::copy_":
        on_gpu = args[0].is_cuda
    if device is not None:
        on_gpu = on_gpu or torch.device(device).type == "cuda"
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = operator(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not operator._schema.returns:
        return None
    if "out" in kwargs:
        return kwargs["out"]
    if operator._schema.is_mutable:
        return args[0]
    return tree_map(lambda x: GPUTensor(x) if on_gpu and isinstance(x, Tensor) else x, result)


def _refuse_both(name: str, tensors: list[Tensor]) -> None:
    on_gpu = [tensor.is_cuda for tensor in tensors]
    if name in _TAKE_BOTH:
        wrong = name != "aten::copy_" and any(on_gpu) and not on_gpu[0]
    else:
        wrong = any(on_gpu) and any(t.dim() > 0 and not t.is_cuda for t in tensors)
    if wrong:
        got = ", ".join(f"{t.device.type} {tuple(t.shape)}" for t in tensors)
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {got}")


def _moving(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def moving(tensor: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        rest = list(args)
        if rest and isinstance(rest[0], str | torch.device):
            device = rest.pop(0)
        elif rest and isinstance(rest[0], Tensor):
            device, rest[0] = rest[0].device, rest[0].dtype
        if device is not None:
            tensor = moved(tensor, torch.device(device))
        return to(tensor, *rest, **kwargs) if rest or kwargs else tensor

    return moving


def _moving_modules(to: Callable[..., Any]) -> Callable[..., Any]:
    def moving(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module_on_gpu(module) if GPU in (*args, *kwargs.values()) else to(module, *args, **kwargs)

    return moving


def _made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def making(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        tensor = make(data, *args, **kwargs)
        return tensor if device is None else moved(tensor, torch.device(device))

    return making
