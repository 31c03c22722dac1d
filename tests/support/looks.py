"""Run on every rank by test_ranks.py: the look at validation images, shared out over the ranks and joined.

torchrun --nproc-per-node 3 -m tests.support.looks PARAMS INGEST WARM OUT
"""

import json
import sys
from pathlib import Path

from components.settings import load_settings
from components.sft.trainer import WarmStartTrainer, sft_presentations, training_arguments
from components.shared.model.loading import load
from components.shared.training.ranks import node_cache, ranks

COUNTS = (1, 2, 3, 4, 7, 10)  # of images: fewer than ranks, as many, and such as do not divide


def main(params: str, ingest: str, warm: str, out: str) -> None:
    state, settings = ranks(), load_settings(Path(params))
    model, processor = load(Path(warm), settings.model)
    arguments = training_arguments(settings.sft, settings.model, Path(out) / "state", state.num_processes)
    with node_cache() as cache:
        trainer = WarmStartTrainer(
            model=model,
            args=arguments,
            train_dataset=sft_presentations(settings, Path(ingest), cache, settings.sft.batch_size, processor),
            processing_class=processor,
            settings=settings,
            ingest=Path(ingest),
        )
    values = {count: trainer._values(count).tolist() for count in COUNTS}
    (Path(out) / f"rank-{state.process_index}.json").write_text(json.dumps(values), encoding="utf-8")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
