"""Writes params.yaml: the settings of a recipe with the data set's own values, comments included."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from components.errors import ConcordError
from components.settings import COMMIT, HUB_ID
from components.shared.tracking.model_revision import content_revision

RECIPES = Path(__file__).parents[3] / "pipelines" / "recipes"
TINY_RECIPE, HUB_RECIPE = RECIPES / "meter-digits.yaml", RECIPES / "agedb-3b.yaml"
# Longer side of the images from which on the tiny model has this size: image, patch.
_TINY_SIZES = ((48, 64, 16), (24, 32, 8), (0, 16, 4))


def template_of(model: str) -> Path:
    """The recipe whose settings suit a model: `tiny`, or a pretrained one."""
    return TINY_RECIPE if model == "tiny" else HUB_RECIPE


def model_settings(model: str, side: int) -> dict[str, Any]:
    """The values of the section model.

    Args:
        model: `tiny`, a hub id with its commit (ID@COMMIT), or a local folder.
        side: the longer side of the images, in pixels.

    Raises:
        ConcordError: the model has no commit, or is none of these.
    """
    if model == "tiny":
        image, patch = next((image, patch) for least, image, patch in _TINY_SIZES if side >= least)
        return {"tiny": {"image_size": image, "patch_size": patch}}
    if Path(model).is_dir():
        return {"name": model, "revision": content_revision(Path(model))}
    name, _, revision = model.partition("@")
    if not HUB_ID.fullmatch(name) or not COMMIT.fullmatch(revision):
        raise ConcordError(
            f"--model {model}: give tiny, a folder, or a hub id with its commit (40 hexadecimal digits), such as "
            "Qwen/Qwen2.5-VL-3B-Instruct@66285546d2b821cf421d4f5eb2576359d3770cd3"
        )
    return {"name": name, "revision": revision}


def filled(template: Path, head: str, values: Mapping[str, Any]) -> str:
    """The template's text with other values.

    Args:
        template: a params file.
        head: comment that replaces the one at the template's head.
        values: key -> value, or -> mapping of the values in that section.
    """
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.Representer = _Representer
    text = template.read_text(encoding="utf-8")
    tree = yaml.load("".join(text.splitlines(keepends=True)[_head_lines(text) :]))
    _update(tree, values)
    out = io.StringIO()
    yaml.dump(tree, out)
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return comment + out.getvalue()


class _Representer(RoundTripRepresenter):
    """Writes null as `null`, as the recipes do."""

    def represent_none(self, data: None) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _head_lines(text: str) -> int:
    """Number of comment lines at the head."""
    lines = text.splitlines()
    return next(k for k, line in enumerate(lines) if line.strip() and not line.startswith("#"))


def _update(tree: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), Mapping):
            _update(tree[key], value)
        elif tree.get(key) != value:  # an equal number keeps its form
            tree[key] = value
