"""Reads all validation images with a trained model, for the model folder's validation.parquet."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from components.console import console
from components.errors import ConcordError
from components.settings import Task
from components.shared.io.progress import with_progress
from components.shared.model.answer_tree import answer_tree
from components.shared.model.device import device
from components.shared.model.generation import collect_answers
from components.shared.model.number_reader import collect_log_probabilities, why_one_by_one
from components.shared.model.prompts import max_answer_tokens
from components.shared.model.validation_file import label_counts, read_validation, write_validation
from components.shared.rows.rows import read_rows, read_table
from components.shared.rows.validation import tune_mask
from components.shared.scoring.answer_rule import ValidationDistributions
from components.shared.scoring.errors import Array


def save_validation(
    folder: Path,
    model: PreTrainedModel,
    processor: Any,
    task: Task,
    ingest: Path,
    batch_size: int,
    reference: Array | None = None,
    trained: float = 0.0,
) -> None:
    """Writes validation.parquet to a model folder.

    Args:
        model: the trained model.
        ingest: row shards; the counts come from train.
        reference: greedy answers of the model that training began from, of `warm_start_answers`; None: this model is
            the warm start.
        trained: the balance that the model was trained with.
    """
    model.to(device())
    tree = answer_tree(processor, task)
    if reason := why_one_by_one(model):
        console.print(f"each of the {len(tree.values)} numbers is scored in a row of its own: {reason}")
    targets = read_table(ingest, "val", ["target"])["target"].to_numpy()
    batches = -(-len(targets) // batch_size)
    rows = with_progress(read_rows(ingest, "val", batch_size), "validation distributions", batches)
    ids, log_p = collect_log_probabilities(model, processor, rows, tree, batch_size, grey_bits=task.grey_bits)
    if reference is None:
        rows = with_progress(read_rows(ingest, "val", batch_size), "validation answers", batches)
        length = max_answer_tokens(processor, task)
        _, _, reference = collect_answers(model, processor, rows, batch_size, length, task)
    counts, shots, per_bin = label_counts(task, read_table(ingest, "train", ["target"])["target"].to_numpy())
    known = ValidationDistributions(
        tree.values, counts, shots, per_bin, trained, tune_mask(ingest), targets, log_p, reference
    )
    write_validation(folder, ids, known)


def warm_start_answers(warm_start: Path, ingest: Path) -> Array:
    """The warm start's greedy answers to the validation images, NaN where invalid.

    Raises:
        ConcordError: its folder has none, or they are of other images.
    """
    ids, distributions = read_validation(warm_start)
    if ids != read_table(ingest, "val", ["id"])["id"].to_pylist():
        raise ConcordError(f"{warm_start}: was trained with other validation images than {ingest} has. Run sft again.")
    return distributions.warm_start
