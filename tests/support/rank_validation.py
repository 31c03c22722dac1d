"""Script that test_ranks.py runs on every rank: generates SFT's validation answers, divided among the ranks.

torchrun --nproc-per-node 3 -m tests.support.rank_validation PARAMS INGEST WARM OUT
"""

import json
import sys
from pathlib import Path

from components.settings import load_settings
from components.sft.trainer import WarmStartTrainer, sft_presentations, training_arguments
from components.shared.model.loading import load
from components.shared.training.ranks import divided_among_ranks, node_cache, ranks

COUNTS = (1, 2, 3, 4, 7, 10)  # images: fewer than ranks, as many, and numbers that 3 does not divide


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
    values = {count: divided_among_ranks(count, trainer._validation_answers).tolist() for count in COUNTS}
    (Path(out) / f"rank-{state.process_index}.json").write_text(json.dumps(values), encoding="utf-8")
    state.wait_for_everyone()


if __name__ == "__main__":
    main(*sys.argv[1:])
