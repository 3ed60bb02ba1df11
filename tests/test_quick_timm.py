"""timm without torch's compiler, which still works for those who want it."""

from __future__ import annotations

import subprocess
import sys


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_imported_without_the_compiler() -> None:
    script = (
        "import sys, vitdc.prediction\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'sympy'))])"
    )
    assert run(script).strip() == "[]"


def test_the_compiler_and_what_waits_for_it_still_work() -> None:
    script = (
        "import vitdc.quick_timm, torch, torchvision\n"
        "boxes = torch.tensor([[0, 0, 0, 4, 4.0]])\n"
        "print(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 1).item())\n"
        "print(vitdc.quick_timm._disable(abs)(-2))\n"
        "import torch._dynamo.utils\n"
        "print(torch._dynamo.utils.is_compile_supported('cpu'), torch._dynamo.disable.__module__)"
    )
    assert run(script).split() == ["1.0", "2", "True", "torch._dynamo.decorators"]


def test_a_compiler_that_is_there_is_left_alone() -> None:
    script = (
        "import torch._dynamo as before, sys\nimport vitdc.quick_timm\n"
        "print(sys.modules['torch._dynamo'] is before)"
    )
    assert run(script).strip() == "True"
