"""What a worker's device can do at most, and how much of its memory was used."""

import resource
import sys

import torch

from pixellm.train.config import TrainConfig

# Dense bf16 peak of one GPU in 1e12 operations per second, from the vendor's data sheets; the longest name that fits counts.
BF16_PEAK_TFLOPS = {"A100": 312, "H100": 989, "H100 PCIe": 756, "H200": 989, "H800": 989, "B200": 2250, "L40S": 362, "L4": 121, "A10": 125}


def peak_tflops(config: TrainConfig) -> float | None:
    """The peak that MFU is a share of: the configured one, else that of a known GPU in bf16, else None."""
    if config.telemetry.peak_tflops is not None:
        return config.telemetry.peak_tflops
    if not config.use_gpu or config.precision != "bf16" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    fitting = [known for known in BF16_PEAK_TFLOPS if known in name]
    return BF16_PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def peak_memory_gb(device: torch.device) -> float:
    """1e9 bytes at this process's peak: what torch held of the GPU, or resident memory where `device` is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
