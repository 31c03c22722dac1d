"""What the README says to write is what the settings take."""

import re
from pathlib import Path

import pytest
import yaml

from components.settings import load_settings

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_settings_in_the_readme() -> None:
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_settings_in_the_readme_are_settings(block: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    shown = yaml.safe_load(block)
    for section, keys in shown.items():
        content[section] |= keys
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = load_settings(tmp_path / "params.yaml").tree()
    for section, keys in shown.items():
        assert {key: settings[section][key] for key in keys} == keys
