"""Every recipe is a complete params file that compiles to a pipeline, and has the published run's settings."""

import json
import re
from pathlib import Path

import pytest
import yaml

from components.settings import Settings, load_settings
from pipelines.__main__ import main

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "pipelines" / "recipes").glob("*.yaml"))
EACH = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
# The published runs: training rows, epochs, inputs per step.
PUBLISHED = {
    "agedb": (12_208, 4, 16),
    "imdb-wiki": (81_911, 2, 16),
    "imdb-movie": (7_049, 6, 24),
    "bone-age": (12_528, 5, 24),
}
SIZES = ("3b", "7b")
SFT_EPOCHS = 3  # at most; not in the paper
PROMISE = re.compile(r"^  (max_steps|steps): (\d+) +# .*?(\d+) epochs? of ([\d,]+) rows, (\d+) per step$", re.MULTILINE)


def recipe(name: str) -> Settings:
    return load_settings(ROOT / "pipelines" / "recipes" / f"{name}.yaml")


@EACH
def test_recipe_loads_and_is_named_after_its_experiment(path: Path) -> None:
    assert load_settings(path).experiment == path.stem


@pytest.mark.parametrize("path", [*RECIPES, ROOT / "params.yaml"], ids=lambda path: path.stem)
def test_drift_is_compared(path: Path) -> None:
    settings = load_settings(path)
    assert settings.validation.drift is not None


@EACH
def test_recipe_compiles(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "pipeline.yaml"
    assert main(["compile", "--params", str(path), "--data-hash", "0" * 32 + ".dir", "--out", str(out)]) == 0
    spec = next(yaml.safe_load_all(out.read_text(encoding="utf-8")))
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert inputs["experiment"]["defaultValue"] == path.stem
    assert (
        json.loads(inputs["grpo_settings"]["defaultValue"]) == yaml.safe_load(path.read_text(encoding="utf-8"))["grpo"]
    )


def test_recipe_files_are_complete() -> None:
    published = {f"{name}-{size}" for name in PUBLISHED for size in SIZES}
    assert published | {"han-strokes", "meter-digits"} == {path.stem for path in RECIPES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_has_the_settings_of_the_published_run(name: str, size: str) -> None:
    settings = recipe(f"{name}-{size}")
    model, grpo, (rows, epochs, prompts) = settings.model, settings.grpo, PUBLISHED[name]
    assert model.name == f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
    assert model.revision is not None
    assert len(model.revision) == 40
    assert model.lora is not None
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (64, 128, 0.05)
    assert (model.dtype, model.freeze_vision) == ("bfloat16", True)
    assert (grpo.reward, grpo.lr, grpo.beta, grpo.generations) == ("ccc", 1e-5, 0.04, 4)
    assert (grpo.prompts, grpo.steps) == (prompts, rows * epochs // prompts)
    assert settings.launcher.num_processes == 2
    assert grpo.prompts % (grpo.accumulation * settings.launcher.num_processes) == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_are_the_epochs_that_the_comments_promise(name: str, size: str) -> None:
    """Of sft and grpo alike, whose `batch_size` and `prompts` count the images of all ranks together."""
    settings, (rows, epochs, prompts) = recipe(f"{name}-{size}"), PUBLISHED[name]
    text = (ROOT / "pipelines" / "recipes" / f"{name}-{size}.yaml").read_text(encoding="utf-8")
    promised = {key: [int(number.replace(",", "")) for number in numbers] for key, *numbers in PROMISE.findall(text)}
    images = settings.sft.batch_size * settings.sft.accumulation
    assert promised == {
        "max_steps": [settings.sft.max_steps, SFT_EPOCHS, rows, images],
        "steps": [settings.grpo.steps, epochs, rows, prompts],
    }
    assert settings.sft.max_steps == SFT_EPOCHS * rows // images
    assert settings.grpo.steps == epochs * rows // settings.grpo.prompts
    assert settings.sft.batch_size % settings.launcher.num_processes == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_sizes_differ_only_in_the_model(name: str) -> None:
    small, large = (recipe(f"{name}-{size}").model_dump(by_alias=True) for size in SIZES)
    different = {section for section in small if small[section] != large[section]}
    assert different == {"experiment", "model", "register"}
    assert {key for key in small["model"] if small["model"][key] != large["model"][key]} == {"name", "revision"}


def test_published_agedb_table_fits_the_recipe() -> None:
    """Checks only the table; the images are not available."""
    folder = ROOT.parent / "shared" / "data" / "agedb"
    if not folder.is_dir():
        pytest.skip("the published table is not here")
    settings = recipe("agedb-3b")
    assert settings.ingest.csv is not None
    rows = (folder / settings.ingest.csv).read_text(encoding="utf-8").splitlines()
    columns = rows[0].split(",")
    column_names = (settings.ingest.image_column, settings.ingest.target_column, settings.ingest.split_column)
    assert all(name in columns for name in column_names)
    split_index = columns.index(str(settings.ingest.split_column))
    assert sum(row.split(",")[split_index] == "train" for row in rows[1:]) == PUBLISHED["agedb"][0]
    targets = [float(row.split(",")[columns.index(settings.ingest.target_column)]) for row in rows[1:]]
    assert settings.task.low <= min(targets) <= max(targets) <= settings.task.high
