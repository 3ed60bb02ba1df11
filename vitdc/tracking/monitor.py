"""The load of the machine while a run works, measured by MLflow's own monitors."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

FIRST = 1.0  # seconds until the first sample; a short run has one, too
INTERVAL = 10.0  # seconds between samples
_PAUSE = "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"
_NO = ("false", "0")

_logger = logging.getLogger(__name__)


class SystemMonitor:
    """Samples in the background until `stop`.

    MLflow's MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (seconds) and
    MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false are heeded. GPUs are seen if `nvidia-ml-py` is
    installed.

    Args:
        tell: Takes the values of a sample by MLflow's names, without `system/`.
    """

    def __init__(self, tell: Callable[[Mapping[str, float]], None]) -> None:
        self._tell = tell
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in _NO:
            self._thread = threading.Thread(target=self._work, name="system-monitor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._end.set()
        if self._thread:
            self._thread.join(5)

    def _work(self) -> None:
        try:
            monitors = _monitors()
            pause = FIRST
            while not self._end.wait(pause):
                values = _sample(monitors)
                if self._end.is_set():  # meanwhile; the run may be done
                    return
                self._tell(values)
                pause = float(os.environ.get(_PAUSE) or INTERVAL)
        except Exception as error:  # no number of the machine is worth a training
            _logger.warning("MLflow: the load of the machine is not recorded: %s", error)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: tuple[Callable[[], Any], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    monitors = [*(kind() for kind in kinds), *_gpu_monitors()]
    _sample(monitors)  # the CPU's load is that since the sample before
    return monitors


def _gpu_monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for monitor in (GPUMonitor, ROCMMonitor):
        try:
            return [monitor()]
        except Exception as error:  # no such GPU or library; they raise all kinds
            _logger.debug("%s: %s", monitor.__name__, error)
    return []


def _sample(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= {name: float(value) for name, value in monitor.aggregate_metrics().items()}
        monitor.clear_metrics()
    return values
