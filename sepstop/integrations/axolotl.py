"""The callback in axolotl, from the section `sepstop:` of its own YAML file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from sepstop.integrations.settings import callback_of

try:
    from axolotl.integrations.base import BasePlugin
except ModuleNotFoundError:  # the tests run the plugin without axolotl, which pins its libraries
    BasePlugin = object


class SepStopArgs(BaseModel):
    """What the plugin adds to axolotl's configuration, which is checked before all else."""

    sepstop: Annotated[Any, Field(validate_default=True)] = None

    @field_validator("sepstop")
    @classmethod
    def _check(cls, section: Any) -> Any:
        """
        Raises:
            OSError, ValueError: no section, or as of `sepstop.integrations.settings.callback_of`.
        """
        if not isinstance(section, dict):
            raise ValueError(
                "expected a section `sepstop:` with settings, such as `pool: prompts.jsonl`; or "
                "remove sepstop from `plugins:`"
            )
        callback_of(section)
        return section


class SepStopPlugin(BasePlugin):
    """Gives axolotl's Trainer the callback, on every rank.

    ``plugins: [sepstop.integrations.axolotl.SepStopPlugin]``
    """

    def get_input_args(self) -> str:
        return f"{SepStopArgs.__module__}.{SepStopArgs.__qualname__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        callback_of(cfg.sepstop.to_dict()).attach(trainer)
