"""Random states of ranks that resume from a checkpoint of another number of ranks."""

import itertools
import shutil
from pathlib import Path

import pytest

from components.grpo.step import run as grpo_run
from components.sft.step import run as sft_run
from components.shared.training.checkpoints import last_complete, seal
from components.shared.training.rank_states import resumed_seed, saved_ranks
from tests.support.gauge_world import Curves, curve, ingested, write_params
from tests.support.raw_folder import content

GRPO = {"steps": 6, "checkpoint_every": 2, "temperature": 1.5}  # samples answers from each rank's random states


def test_no_two_ranks_numbers_of_ranks_or_steps_share_a_seed() -> None:
    every = itertools.product((0, 1, 2**32 - 1), (4, 8), (1, 2, 3), (0, 1, 2))
    seeds = [resumed_seed(*chosen) for chosen in every]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_rank_of_another_number_samples_from_its_own_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint is made to look like that of two ranks; steps before it and after it are those of one."""
    ingest = ingested(tmp_path / "world")
    settings = write_params(tmp_path / "params.yaml", grpo=GRPO, sft={"max_steps": 40, "eval_every": 40, "lr": 0.004})
    warm = tmp_path / "warm" / "sft"
    sft_run(settings, Curves(), ingest=ingest, validate=ingest, out=warm, state=tmp_path / "warm" / "state")  # type: ignore[arg-type]

    def train(name: str, stop_after: int | None = None) -> Path:
        folder = tmp_path / name
        curves = Curves(stop_after)
        grpo_run(settings, curves, ingest=ingest, sft=warm, out=folder / "grpo", state=folder / "state")  # type: ignore[arg-type]
        return folder / "grpo"

    undisturbed = train("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        train("one", stop_after=2)
    (state,) = (tmp_path / "one" / "state").iterdir()
    checkpoint = Path(last_complete(state) or "")
    assert saved_ranks(checkpoint) == 1
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    shutil.copy(checkpoint / "rng_state.pth", checkpoint / "rng_state_1.pth")
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    seal(state, 2)
    assert saved_ranks(checkpoint) == 2
    shutil.copytree(tmp_path / "one", tmp_path / "again")

    assert content(train("same")) == content(undisturbed)
    capsys.readouterr()
    first = train("one")
    assert "resuming from step 2 on another number of ranks: 1 instead of 2" in capsys.readouterr().err
    assert content(train("again")) == content(first), "the seed is not defined by the settings"
    before, after = curve(undisturbed), curve(first)
    assert [before[step] == after[step] for step in (1, 2, 3)] == [True, True, False]
