"""Which objective the initial training has, and why."""

from __future__ import annotations

from typing import Literal, NamedTuple

from vitdc.artifacts import Supervision
from vitdc.errors import InputError

Asked = Literal["auto", "supervised", "simclr", "vicreg"]
DEFAULT: Literal["simclr"] = "simclr"
"""Self-supervision where nothing else is asked for."""


class Choice(NamedTuple):
    """An objective by name, None for no training at all, and the reason in words."""

    objective: Literal["supervised", "simclr", "vicreg"] | None
    reason: str


def choose_initial(
    asked: Asked, *, supervision: Supervision, is_pretrained: bool, trainable: str = "all"
) -> Choice:
    """Resolve `pretraining.objective`.

    Args:
        asked: Its value.
        supervision: How many training images have a label that may be trained on.
        is_pretrained: Whether the model has pretrained weights.
        trainable: What training changes, as `model.trainable`.

    Raises:
        InputError: Labels are needed, and there are none to train on; or what is needed is frozen.
    """
    if trainable == "none":
        if asked != "auto":
            raise InputError(
                f"pretraining.objective: {asked}, but model.trainable is none, so nothing is"
                " trained; take auto, or another model.trainable"
            )
        return Choice(None, "model.trainable is none")
    if asked == "supervised" and supervision == "none":
        raise InputError(
            "pretraining.objective: supervised, but no label may be trained on (eq. 5 needs them);"
            " label some images and leave data.labels at auto, or take auto, simclr or vicreg"
        )
    if asked == "auto" and supervision == "none" and is_pretrained:
        return Choice(None, "no label may be trained on, and the weights are pretrained")
    learns_from_all = supervision == "partial" and not is_pretrained and trainable != "head"
    by_default = DEFAULT if supervision == "none" or learns_from_all else None
    views = asked if asked in ("simclr", "vicreg") else by_default
    if views and trainable == "head":
        raise InputError(
            f"pretraining.objective: {views} compares views of an image, and a frozen backbone sees"
            " every image once; take model.trainable=all or last_2"
        )
    if asked != "auto":
        return Choice(asked, "pretraining.objective says so")
    if supervision == "none":
        return Choice(DEFAULT, "no label may be trained on")
    if learns_from_all:
        return Choice(DEFAULT, "only some labels are known, and the rounds train on those")
    which = {"full": "all", "partial": "some"}[supervision]
    return Choice("supervised", f"{which} training images have a label to train on")
