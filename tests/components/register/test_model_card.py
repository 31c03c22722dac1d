"""Model cards from the tags of a version, without a store."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from components.register.card_sections import number
from components.register.model_card import model_card
from components.settings import Settings


def metrics(mae: float, few: int = 20) -> dict[str, Any]:
    """Result of `components.shared.reporting.metrics.evaluate`."""
    groups = {
        group: {"n": n, "mae": mae if n else None, "mae_ci": [mae - 1, mae + 1] if n else None}
        for group, n in (("all", 100 + few), ("many", 60), ("medium", 40), ("few", few))
    }
    single = {"ccc": 0.5, "ccc_ci": [0.25, 0.75], "sd_ratio": None, "sd_ratio_ci": None, "unparseable": 0.0125}
    return {"n": 100 + few, "groups": groups, **single}


def distribution() -> dict[str, Any]:
    def group(n: int, guaranteed: bool) -> dict[str, Any]:
        conformal = {"coverage": 0.905, "coverage_ci": None, "width": 7.0, "width_ci": None, "guaranteed": guaranteed}
        return {"n": n, "crps": 2.5, "crps_ci": None, "conformal": conformal}

    groups = {"all": group(120, False), "many": group(60, True), "medium": group(40, True), "few": group(20, False)}
    return {"groups": groups, "mass": {"mean": 0.99, "least": 0.5}}


FACTS: dict[str, Any] = {
    "images": {"train": 1200, "val": 60, "test": 120},
    "train": {"many": 1100, "medium": 90, "few": 10},
    "calibrate": {"many": 20, "medium": 8, "few": 2},
    "base": {"kind": "hub", "id": "owner/base-3b", "revision": "a" * 40},
    "training": {"sft": {"steps": 50}, "grpo": {"steps": 300, "best_step": 250, "method": "CCC-GRPO"}},
    "balance": 0.3,
    "text": metrics(9.0),
    "warm_start": metrics(11.0),
    "distribution": distribution(),
}


def version(settings: Settings, **changed: Any) -> Any:
    """A version with all tags of the register step, and the changes."""
    outcome = {"promoted": True, "reason": "against the champion, better.", "champion_before": None, "few": None}
    tags = {
        "concord.settings": settings.tree(),
        "concord.metrics": metrics(7.5),
        "concord.card": FACTS,
        "concord.decision": outcome,
        "concord.served": "grpo.balanced",
        "concord.data": "1234.dir",
    }
    known = {name: value for name, value in (tags | changed).items() if value is not None}
    stored = {name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()}
    return SimpleNamespace(name="reader", version=4, tags=stored)


def card(settings: Settings, **changed: Any) -> str:
    content = model_card(version(settings, **changed))
    assert content is not None
    return content


def front_matter(content: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(content.split("---\n")[1])
    return found


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12.94, "12.9"),
        (7.5, "7.50"),
        (0.001234, "0.00123"),
        (8040, "8,040"),
        (100, "100"),
        (0, "0.00"),
        (999.7, "1,000"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_the_base_model_on_the_hub_is_named_with_its_commit(settings: Settings) -> None:
    content = card(settings)
    assert front_matter(content)["base_model"] == "owner/base-3b"
    assert f"| base model | owner/base-3b at `{'a' * 40}` |" in content


def test_a_local_base_model_has_no_path_and_no_hub_id(settings: Settings) -> None:
    content = card(settings, **{"concord.card": FACTS | {"base": {"kind": "folder"}}})
    assert "base_model" not in front_matter(content)
    assert "| base model | a local folder |" in content


def test_the_training_of_the_weights_is_described(settings: Settings) -> None:
    content = card(settings)
    assert "| weights | SFT, then CCC-GRPO |" in content
    assert "| CCC-GRPO | 300 steps, step 250 kept, " in content
    warm = card(settings, **{"concord.served": "sft.balanced"})
    assert "| weights | the SFT warm start |" in warm
    assert "| CCC-GRPO |" not in warm
    assert "warm start's text" not in warm


def test_adapters_are_named(settings: Settings) -> None:
    tree = settings.tree()
    tree["model"] |= {"lora": {"r": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}, "freeze_vision": True}
    facts = FACTS | {"adapter": True}
    content = card(settings, **{"concord.settings": tree, "concord.card": facts})
    assert "| model | float32, LoRA r 64, alpha 128, beside the weights, vision tower frozen |" in content
    assert 'model.load_adapter("./adapter")' in content


def test_a_version_of_an_earlier_release_has_its_adapters_merged(settings: Settings) -> None:
    tree = settings.tree()
    tree["model"] |= {"lora": {"r": 64, "alpha": 128, "dropout": 0.05, "targets": "all-linear"}}
    content = card(settings, **{"concord.settings": tree})
    assert "| model | float32, LoRA r 64, alpha 128, merged |" in content
    assert "load_adapter" not in content


def test_limits_name_the_groups_without_a_guarantee(settings: Settings) -> None:
    content = card(settings)
    assert "Rare numbers are judged on 20 few-shot test images. 10 training images have a few-shot label." in content
    assert "from which its thresholds come (many 20, medium 8, few 2)." in content
    assert "too few of them to guarantee the coverage of: few." in content
    assert "On the test images it is 0.990 on average and 0.500 at least." in content


def test_answers_from_the_text_have_no_distribution(settings: Settings) -> None:
    facts = FACTS | {"balance": None, "distribution": None}
    content = card(settings, **{"concord.served": "grpo.text", "concord.card": facts})
    assert "| images | n | MAE | MAE of the warm start's text |" in content
    assert "Answers without a valid number: 1.25 %." in content
    assert "NumberReader" not in content
    assert "interval of" not in content
    assert content.count("```python") == 1


def test_what_is_unknown_is_left_out(settings: Settings) -> None:
    content = card(settings, **{"concord.card": None, "concord.decision": None, "concord.data": None})
    assert "| images | n | MAE |\n" in content
    assert "| all | 120 | 7.50 [6.50–8.50] |" in content
    for absent in ("## Decision", "## Data", "None", "sd ratio", "base model", "training images"):
        assert absent not in content
    assert model_card(version(settings, **{"concord.settings": None})) is None


def test_an_empty_shot_group_has_no_figure(settings: Settings) -> None:
    content = card(settings, **{"concord.metrics": metrics(7.5, few=0), "concord.card": None})
    assert "| few | 0 | – |" in content
    assert [each["name"] for each in front_matter(content)["model-index"][0]["results"][0]["metrics"]] == [
        "MAE all",
        "MAE many",
        "MAE medium",
    ]


def test_promotion_and_rollback_by_hand_are_part_of_the_decision(settings: Settings) -> None:
    refused = {"promoted": False, "reason": "against the champion, worse.", "champion_before": None, "few": None}
    by_hand = {
        "concord.decision": refused,
        "concord.promoted.why": "field trial",
        "concord.rolled_back.why": "drifts",
        "concord.rolled_back.to": "3",
    }
    content = card(settings, **by_hand)
    assert "not met: against the champion, worse." in content
    assert "Promoted by hand: field trial" in content
    assert "Rolled back to version 3: drifts" in content


def test_errors_and_secrets_of_one_machine_are_not_in_the_card(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    reason = "the champion (version 3) could not predict the current test images, so no gain can be shown: /home/me/x"
    outcome = {"promoted": False, "reason": reason, "champion_before": {"version": "3", "metrics": None}, "few": None}
    tree = settings.tree()
    tree["task"] |= {"question": "hf_planted_secret? https://me:planted@host/?token=planted"}
    content = card(settings, **{"concord.decision": outcome, "concord.settings": tree})
    assert "so no gain can be shown" in content
    assert "/home/me" not in content
    assert "planted" not in content
