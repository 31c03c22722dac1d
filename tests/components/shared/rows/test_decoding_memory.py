"""Decoding needs no more memory than its budget, however many images are decoded at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from components.shared.io.memory_budget import DECODING_BYTES

ROOT = Path(__file__).parents[4]
SIDE = 5000
SLACK = 64 << 20
PEAK = """
import json, sys
from pathlib import Path

def peak():
    "Largest memory of this process since the last `reset`, in bytes."
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def reset():
    Path("/proc/self/clear_refs").write_text("5")
    return peak()

from components.shared.rows.images import load_decoders
load_decoders()
"""


def child(code: str, folder: Path) -> dict[str, Any]:
    """What code prints as JSON in a process of its own; `ru_maxrss` would count what this one had in use."""
    command = [sys.executable, "-c", PEAK + code, str(folder)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed is not kept for later
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_threads_decode_within_the_budget(tmp_path: Path) -> None:
    """Six files of a few kilobytes, each of which takes 125 MB: in ingest, before training, in validate and else."""
    Image.new("1", (SIDE, SIDE)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 11_000
    code = """
from components.shared.io import prefetch
from components.shared.rows.images import check_image, decode_image, decoded_size
from components.validate.image_probe import probe_image
prefetch.THREADS = 8  # as on a machine with as many cores
data = Path(sys.argv[1], "bomb.png").read_bytes()
found = {}
for call in (check_image, decoded_size, probe_image, lambda data: decode_image(data).size):
    before = reset()
    assert sum(1 for _ in prefetch.prefetch(call, [data] * 6, batch=1)) == 6
    found[call.__name__] = peak() - before
print(json.dumps(found))
"""
    found = child(code, tmp_path)
    assert len(found) == 4
    assert max(found.values()) < DECODING_BYTES + SLACK, found
    assert min(found.values()) > 5 * SIDE**2 * 0.9, found


def test_the_weight_of_an_image_covers_what_it_takes(tmp_path: Path) -> None:
    """Each kind is decoded alone, and its peak compared with what is taken from the budget."""
    picture = Image.linear_gradient("L").resize((2000, 2000))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"):
        picture.convert(mode).save(tmp_path / f"{mode.replace(';', '')}.png", compress_level=1)
    picture.convert("P").save(tmp_path / "transparent.png", transparency=3, compress_level=1)
    for mode in ("L", "RGB", "CMYK"):
        picture.convert(mode).save(tmp_path / f"{mode}.jpg")
    picture.convert("RGB").save(tmp_path / "rotated.jpg", exif=rotated)
    picture.convert("RGB").save(tmp_path / "rotated.png", exif=rotated, compress_level=1)
    code = """
from components.shared.rows.images import _bytes_to_decode, decode_image, open_image
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    weight = _bytes_to_decode(open_image(data))
    before = reset()
    decode_image(data)
    found[path.name] = [peak() - before, weight]
print(json.dumps(found))
"""
    measured = child(code, tmp_path)
    assert len(measured) == 13
    assert {name: pair for name, pair in measured.items() if pair[0] > pair[1] + (10 << 20)} == {}
