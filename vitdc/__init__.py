"""Deep clustering of images with a Vision Transformer (Shin, Yu, Lee).

`DeepClustering` is the whole method as a scikit-learn estimator. It is imported when it is asked
for, so that `import vitdc` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitdc.estimator import DeepClustering

__all__ = ["DeepClustering", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "DeepClustering":
        import warnings

        with warnings.catch_warnings():
            # of a library below timm, in every notebook without ipywidgets
            warnings.filterwarnings("ignore", "IProgress not found")
            from vitdc.estimator import DeepClustering

        return DeepClustering
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
