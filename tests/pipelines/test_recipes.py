"""Every recipe is a whole params file."""

from pathlib import Path

import pytest

from components.settings import load_settings

RECIPES = sorted((Path(__file__).parents[2] / "pipelines" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_is_named_after_its_experiment(path: Path) -> None:
    assert load_settings(path).experiment == path.stem


def test_there_are_recipes() -> None:
    assert {"han-strokes", "meter-digits"} <= {path.stem for path in RECIPES}
