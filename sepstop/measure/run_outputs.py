"""The outputs of the model of one run: inferred at its beginning, fixed from its first score on."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from sepstop.config import AUTO
from sepstop.measure.outputs import (
    OUTPUTS_IN_WORDS,
    PROBLEM_TYPES,
    InferredOutputs,
    outputs_without_labels,
    problem_type,
)
from sepstop.types import Outputs


class RunOutputs:
    """The outputs of the model of one run.

    Args:
        requested: "auto", or the outputs.

    Attributes:
        requested: as given.
        outputs: "classes", "labels" or "none"; None before they are known.
        has_logits: True if the model returns ``(b, k)`` logits, whatever they stand for.
    """

    def __init__(self, requested: str = "auto") -> None:
        self.requested = requested
        self.outputs: Outputs | None = None
        self.has_logits = False
        self._is_guess = False
        self._is_final = requested != "auto"

    @property
    def known(self) -> Outputs | None:
        """The outputs, those that were requested before a model was seen; None for "auto"."""
        asked: Any = None if self.requested == AUTO else self.requested
        return self.outputs or asked

    def set(self, num_logits: int, inferred: InferredOutputs) -> None:
        """Set the outputs of a model with ``(b, num_logits)`` logits, as `infer_outputs` found."""
        self.has_logits = num_logits > 0
        self.outputs, self._is_guess = inferred

    def restore(self, recorded: Any) -> bool:
        """Replace a guess by the outputs that the run recorded before it was resumed, if valid.

        Returns:
            True if the outputs changed.
        """
        if not self._is_guess or recorded not in PROBLEM_TYPES.values():
            return False
        before, self.outputs, self._is_guess = self.outputs, recorded, False
        return before != recorded

    def update(self, model: nn.Module) -> bool:
        """Adopt a ``problem_type`` that transformers has set meanwhile.

        A model may have no ``problem_type`` before training. Transformers sets it in the first
        forward pass of training and computes the loss by it.

        Returns:
            True if the outputs changed.

        Warns:
            RuntimeWarning: the outputs changed.
        """
        problem = None if self._is_final or not self.has_logits else problem_type(model)
        if problem is None:
            return False
        before, self.outputs = self.outputs, PROBLEM_TYPES[problem]
        self._is_final, self._is_guess = True, False
        if before in (None, self.outputs):
            return False
        warnings.warn(
            f"sepstop: the model is trained for {OUTPUTS_IN_WORDS[self.outputs]} "
            f"(config.problem_type is now {problem!r}), not for {OUTPUTS_IN_WORDS[before]} as "
            "assumed before training; its scores follow what it is trained for",
            RuntimeWarning,
            stacklevel=5,
        )
        return True

    def resolve(self, num_logits: int, declared: Outputs | None) -> Outputs:
        """The outputs for an observation, which an earlier process may have made.

        Args:
            num_logits: k of the observed ``(N, k)`` logits; 0 without logits.
            declared: from `declared_outputs` of the observed model.

        Raises:
            ValueError: the observation contradicts the outputs of this run.
        """
        if self.outputs is None:
            self.set(num_logits, outputs_without_labels(num_logits, declared, self.requested))
        assert self.outputs is not None
        if self.outputs != "none" and num_logits == 0:
            raise ValueError(f"expected logits of {OUTPUTS_IN_WORDS[self.outputs]}, got none")
        if self.requested == "auto" and num_logits and declared not in (None, self.outputs):
            raise ValueError(
                f"expected outputs that are {OUTPUTS_IN_WORDS[self.outputs]}, as measured before, "
                f"got {OUTPUTS_IN_WORDS[declared]}; if you know what they are, set outputs= "
                "(--outputs)"
            )
        return self.outputs

    def freeze(self, step: int) -> None:
        """Fix the outputs from the first trained step on; step 0 changes nothing.

        Args:
            step: optimizer steps taken.

        Warns:
            UserWarning: the outputs are a guess.
        """
        if step == 0:
            return
        if self._is_guess and self.outputs in ("classes", "labels"):
            warnings.warn(
                "sepstop: neither the model's configuration nor the training labels tell what the "
                f"model's outputs are, so they are assumed to be {OUTPUTS_IN_WORDS[self.outputs]}; "
                "to be sure, set outputs='classes', 'labels' or 'none' (--outputs)",
                UserWarning,
                stacklevel=4,
            )
        self._is_final, self._is_guess = True, False
