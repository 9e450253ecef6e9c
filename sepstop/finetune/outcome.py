"""What a run kept, in words."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer

from sepstop.callbacks.best_weights import best_record, folder_of
from sepstop.callbacks.trainer import SepStopCallback

MODEL_FOLDER = "model"
"""The model at the end of training, in the folder of a run."""


def what_was_kept(trainer: Trainer, callback: SepStopCallback) -> str:
    """The best weights, where they are, and whether OUTPUT_DIR/model holds them."""
    best, decision = best_record(callback.history, callback.decision), callback.decision
    if best is None or decision is None:
        return "no step has a score, so the last weights are kept"
    folder = folder_of(callback.run_dir, best)
    model = Path(trainer.args.output_dir) / MODEL_FOLDER
    asks = trainer.args.load_best_model_at_end or callback.config.load_best_model_at_end
    if asks and trainer.state.best_global_step == best.step:
        holds = "the best weights"
    elif asks:
        holds = f"the best by {trainer.args.metric_for_best_model}"
    else:
        holds = "the last weights; to have the best there, set sepstop.load_best_model_at_end"
    return (
        f"best step {best.step}: {decision.reason}\n"
        f"best weights: {best.average or f'those of step {best.step}'}, "
        f"{f'in {folder}' if folder.is_dir() else 'not on disk'}\n"
        f"{model} holds {holds}"
    )
