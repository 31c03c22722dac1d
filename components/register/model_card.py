"""The model card of a registered version, as the Hugging Face hub and MLflow's UI show it."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.register.card_sections import Card
from components.register.registry import REASON, Registry
from components.shared.io.secrets import masked
from components.shared.model.adapter import ADAPTER
from components.shared.model.prompts import prompt
from components.shared.scoring.shots import GROUPS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FILE = "README.md"  # the hub shows a file of this name as the model card

READ = """\
from pathlib import Path
import pyarrow as pa
from components.settings import Reader
from components.shared.model.number_reader import NumberReader

folder, image = Path("."), Path("image.png")
settings = Reader.model_validate_json((folder / "reader.json").read_text())
row = {"id": image.name, "image": {"bytes": image.read_bytes()}, "question": settings.task.question}
for _, read in NumberReader.load(folder, settings).read([pa.RecordBatch.from_pylist([row])], 1):
    print(read.value[0], read.low[0], read.high[0], read.mass[0])
"""

GENERATE = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model, processor = AutoModelForImageTextToText.from_pretrained("."), AutoProcessor.from_pretrained(".")
{adapter}content = [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]
messages = [{{"role": "user", "content": content}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = processor(text=[text], images=[[Image.open("image.png").convert("RGB")]], return_tensors="pt")
tokens = model.generate(**inputs.to(model.dtype), max_new_tokens=24, do_sample=False)
print(processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""

LOAD_ADAPTER = f"""\
model.load_adapter("./{ADAPTER}")  # by peft; without this line, the model is the one before training
"""


def model_card(version: "ModelVersion") -> str | None:
    """The card in Markdown with the hub's front matter, from the version's tags; None if no register step wrote them.

    Secrets are masked.
    """
    card = Card.of(version)
    if card is None:
        return None
    front = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True, width=1000)
    parts = [f"# {card.name}, version {card.number}", *card.sections(), _usage(card)]
    return masked(f"---\n{front}---\n\n" + "\n\n".join(parts))


def publish_card(registry: Registry, number: str, reason: str | None = None) -> None:
    """Stores the card as an artifact of the version, and the reason with the card's sections as its description.

    Args:
        reason: of the last decision about the version; None: the reason that it has already.

    Raises:
        ConcordError: the registry or its artifact store cannot be reached.
    """
    version = registry.version(number)
    card, content = Card.of(version), model_card(version)
    sections = card.sections() if card else []
    registry.describe(number, reason or version.tags.get(REASON, ""), [masked(section) for section in sections])
    if content is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE)
        file.write_text(content, encoding="utf-8")
        registry.attach(version, file)


def _usage(card: Card) -> str:
    question = prompt(card.task.question)[0]["content"]
    adapter = LOAD_ADAPTER if card.has_adapter else ""
    generate = f"```python\n{GENERATE.format(question=question, adapter=adapter)}```"
    if card.by_text:
        return f"## Use\n\nIn the folder of this file, with transformers alone:\n\n{generate}\n"
    return (
        "## Use\n\nIn the folder of this file, with the Concord package: value, ends of the interval, mass.\n\n"
        f"```python\n{READ}```\n\n"
        "The same for many images: `python -m components predict IMAGES... --model .`\n\n"
        f"With transformers alone, only the greedy text can be read, without balance and interval:\n\n{generate}\n"
    )


def _front_matter(card: Card) -> dict[str, Any]:
    """Metadata of the hub. A licence is not known, so none is given."""
    base, data = card.facts.get("base", {}), _hub_data(card)
    return {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["image-regression", "long-tail", "concord"],
        **({"base_model": base["id"]} if base.get("kind") == "hub" else {}),
        **({"datasets": [data]} if data else {}),
        "metrics": ["mae"],
        "model-index": [{"name": card.name, "results": [_result(card, data)]}],
    }


def _hub_data(card: Card) -> str | None:
    """The data set's id on the hub, if the rows come from there."""
    release: Mapping[str, Any] = card.settings.get("ingest", {}).get("release") or {}
    return (release.get("hub") or {}).get("id")


def _result(card: Card, data: str | None) -> dict[str, Any]:
    experiment = card.settings.get("experiment", card.name)
    groups = card.figures["groups"]
    return {
        "task": {"type": "image-text-to-text", "name": card.task.question},
        "dataset": {"type": data or experiment, "name": experiment, "split": "test"},
        "metrics": [
            {"type": "mae", "name": f"MAE {group}", "value": groups[group]["mae"]}
            for group in GROUPS
            if groups[group]["mae"] is not None
        ],
    }
