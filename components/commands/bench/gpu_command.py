"""`python -m components bench gpu`: steps, decoding, agreement and a resume of Qwen2.5-VL-3B on one GPU.

The model is built from its config with random weights, so nothing is fetched. Without a GPU, a tiny model takes the
same code path. `--pack FOLDER` prepares a folder with the packages that a bare GPU machine lacks, for its PYTHONPATH:

    python -m components bench gpu --pack .gpu-packages
    PYTHONPATH=.gpu-packages python3 -m components bench gpu      # there
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from components.console import console
from components.errors import ConcordError
from components.settings import load_settings

SECONDS = 360  # of the parts together; start-up and the end of the last part come on top: below 8 minutes


def main(arguments: list[str]) -> None:
    """Measures every part and writes the tables, or fills a folder with packages."""
    parser = argparse.ArgumentParser(
        prog="python -m components bench gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit (default: %(default)s)")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="fill FOLDER with packages, and stop")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench-gpu"), help="results file (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.pack:
        from components.commands.bench.gpu_packages import pack

        console.print(f"Wrote {options.pack}: {pack(options.pack) / 1e6:.0f} MB")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    from components.commands.bench.gpu_measure import ON_GPU, WITHOUT_GPU, GpuBench, run_parts  # takes seconds
    from components.commands.bench.gpu_table import write_gpu_tables
    from components.shared.model.device import on_accelerator
    from components.shared.model.quiet import quiet

    quiet()
    if not on_accelerator():
        _keep_gpu_results(options.out)
        console.print("no GPU: a tiny model takes the same code path")
    settings = load_settings(options.params)
    with tempfile.TemporaryDirectory() as scratch:
        bench = GpuBench(ON_GPU if on_accelerator() else WITHOUT_GPU, settings, Path(scratch))
        results = {**_facts(bench), "parts": {}}
        for name, found in run_parts(bench, options.seconds):
            results["parts"][name] = found
            write_gpu_tables(options.out, results)  # after each part, for the machine may be taken away
    console.print(f"Wrote {options.out}.md and {options.out}.json")


def _keep_gpu_results(out: Path) -> None:
    """Raises a ConcordError if a GPU's results would be overwritten by those of the tiny model."""
    earlier = out.with_suffix(".json")
    if earlier.exists():
        device = json.loads(earlier.read_text(encoding="utf-8"))["device"]
        if device["gpu"]:
            raise ConcordError(f"{earlier}: measured on {device['name']}; this machine has no GPU. Give another --out.")


def _facts(bench: Any) -> dict[str, Any]:
    """Device, machine and model."""
    from components.commands.machine import machine_facts
    from components.shared.model.device import device_name, on_accelerator
    from components.shared.model.lora import trainable

    settings, size = bench.material.settings, bench.plan.size
    model = trainable(bench.material.load()[0], settings.model)
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    trained = sum(count for count, learns in counts if learns)
    return {
        "device": {"name": device_name(), "gpu": on_accelerator()},
        "machine": machine_facts(),
        "model": {
            "title": size.title,
            "side": size.side,
            "parameters": sum(count for count, _ in counts) - trained,
            "trained": trained,
            "lora": settings.model.lora.r,
        },
    }
