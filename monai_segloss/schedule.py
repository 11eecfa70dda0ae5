"""How the weights of a sum of losses change over the epochs of a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from monai_segloss.losses import WeightedSumLoss, get_loss_row, get_partner

__all__ = [
    "SCHEDULES",
    "LossWeightSchedule",
    "Schedule",
    "equal",
    "get_schedule",
    "gradual",
    "schedule_of",
]

logger = logging.getLogger(__name__)

Schedule = Callable[[int], Sequence[float]]
"""Epoch, counted from 0 -> one weight per loss of the sum."""


def equal(epoch: int) -> tuple[float, float]:
    """A + B: both losses count 1 in every epoch."""
    return 1.0, 1.0


def gradual(epoch: int) -> tuple[float, float]:
    """alpha A + (1 - alpha) B with alpha = max(1 - 0.01 epoch, 0.01).

    From the region loss A alone to almost only the boundary loss B (Kervadec et al. 2019, section
    2.3, "rebalance"; Valverde & Tohka 2022, section 4).

    Args:
        epoch: counted from 0.

    Raises:
        ValueError: if ``epoch`` is negative.
    """
    if epoch < 0:
        raise ValueError(f"epoch: expected a number >= 0, got {epoch}")
    # From whole hundredths: 1 - 0.01 * 99 would not be 0.01.
    alpha = max(100 - epoch, 1) / 100
    return alpha, 1 - alpha


SCHEDULES: Mapping[str, Schedule] = {"equal": equal, "gradual": gradual}
"""The schedules by name."""


def get_schedule(name: str) -> Schedule:
    """A schedule of :data:`SCHEDULES`.

    Raises:
        ValueError: on an unknown name, listing the known ones.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name]


def schedule_of(
    loss_name: str, partner: str | None = "default", schedule: str | None = "default"
) -> str | None:
    """Name of the schedule that a loss of the taxonomy is trained with.

    Args:
        loss_name: a name of the taxonomy.
        partner: as in :func:`monai_segloss.losses.make_training_loss`.
        schedule: ``"default"`` for the row's own, None or ``"none"`` for constant weights, or a
            name.

    Returns:
        The name, or None if the weights are constant or there is no partner.

    Raises:
        ValueError: on an unknown name, or a schedule by name for a loss without a partner.
    """
    row = get_loss_row(loss_name)
    if schedule == "none":  # MONAI's command line drops an override that is None.
        schedule = None
    if schedule not in (None, "default"):
        get_schedule(schedule)
    if get_partner(loss_name, partner) is None:
        if schedule not in (None, "default") and row.build is not WeightedSumLoss:
            raise ValueError(
                f"schedule: expected none, since {loss_name!r} has no partner, got {schedule!r}"
            )
        return None if schedule == "default" else schedule
    return row.schedule if schedule == "default" else schedule


class LossWeightSchedule:
    """Ignite handler: sets the weights of a sum of losses as each epoch begins.

    The weights follow from the trainer's epoch, so a run that a checkpoint takes up goes on with
    those of its epoch. Put it, or the loss, into a checkpoint to keep them with the rest.

    Args:
        loss: the sum.
        schedule: a function of the epoch, counted from 0, or a name of :data:`SCHEDULES`.

    Raises:
        ValueError: on an unknown name; when an epoch begins, if the schedule gives another number
            of weights than the sum has losses.
    """

    def __init__(self, loss: WeightedSumLoss, schedule: Schedule | str = "gradual") -> None:
        self.loss = loss
        self.schedule = get_schedule(schedule) if isinstance(schedule, str) else schedule
        self.epoch = 0

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        # Ignite counts from 1, and has counted when the epoch begins.
        self.epoch = engine.state.epoch - 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The epoch whose weights are set."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the weights of the epoch that was saved."""
        self.epoch = int(state["epoch"])
        self._apply()

    def _apply(self) -> None:
        weights = self.schedule(self.epoch)
        self.loss.set_weights(weights)
        logger.debug("epoch %d: loss weights %s", self.epoch + 1, list(weights))
