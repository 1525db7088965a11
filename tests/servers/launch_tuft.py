"""TuFT where there is no GPU: Ray is told of one, and each process gets what a CPU build of torch lacks."""

from __future__ import annotations


def without_gpu() -> None:
    """Define the counters of GPU memory that TuFT resets."""
    import torch

    for name in ("_cuda_resetPeakMemoryStats", "_cuda_resetAccumulatedMemoryStats"):
        if not hasattr(torch._C, name):
            setattr(torch._C, name, lambda *_: None)


if __name__ == "__main__":
    import ray
    from tuft.cli import main

    without_gpu()
    hook = {"worker_process_setup_hook": without_gpu}
    ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, runtime_env=hook)
    main()
