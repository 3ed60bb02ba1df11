"""timm, imported in a third of the time: without torch's compiler.

timm imports torchvision, and two lines in the two of them import `torch._dynamo`, which takes more
than twice as long as all the rest, while a model that is only used never compiles anything:

- torchvision/ops/roi_align.py imports `torch._dynamo.utils.is_compile_supported`, to call it later;
- timm/models/naflexvit.py decorates a function with `torch.compiler.disable`.

While timm is imported, small functions stand in for these two; when one of them is called, it gets
the real one. Afterwards nothing is left of them: whoever imports or uses `torch._dynamo` gets it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

__all__ = ["init_weights_vit_timm", "timm"]

COMPILER = "torch._dynamo"


@contextmanager
def _compiler_deferred() -> Iterator[None]:
    """Let imports in the block that need the compiler wait for it until they use it."""
    if COMPILER in sys.modules:
        yield
        return
    compiler, utils = ModuleType(COMPILER), ModuleType(f"{COMPILER}.utils")
    compiler.__path__ = []  # a package
    compiler.disable, compiler.utils = _disable, utils  # type: ignore[attr-defined]
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    stand_ins = {COMPILER: compiler, f"{COMPILER}.utils": utils}
    sys.modules.update(stand_ins)
    torch._dynamo = compiler
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if torch.__dict__.get("_dynamo") is compiler:
            del torch._dynamo


def _is_compile_supported(device_type: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _disable(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[..., Any]:
    @functools.cache
    def disabled() -> Callable[..., Any]:
        import torch._dynamo

        return torch._dynamo.disable(function, *arguments, **options)  # type: ignore

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return disabled()(*args, **kwargs)

    return call


with _compiler_deferred():
    import timm
    from timm.models.vision_transformer import init_weights_vit_timm
