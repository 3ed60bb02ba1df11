"""Cron expressions in the dialect of Kubeflow."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass
from typing import Self

from vitdc.errors import InputError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 6, _WEEKDAYS),
)
_SHORTHANDS = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
}


@dataclass(frozen=True)
class Cron:
    """When a schedule starts runs, in the dialect of Kubeflow (Go's robfig/cron, version 1).

    It has a field for seconds in front, no day 7, and reads five fields as ones that lack the day
    of week: `30 2 * * *`, meant for half past two, would start a run every hour. Five fields are
    read as crontab reads them here, and six as Kubeflow does.

    Attributes:
        expression: The six fields.
        fields: The values that each of them allows.
    """

    expression: str
    fields: tuple[frozenset[int], ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a cron expression with five or six fields, or a shorthand such as @daily.

        Raises:
            InputError: It is none, or names a time that never comes.
        """
        fields = _SHORTHANDS.get(text.strip().lower(), text).split()
        if len(fields) == 5:
            fields = ["0", *fields]
        if len(fields) != 6:
            raise InputError(
                f"--cron {text!r}: five fields are needed (minute, hour, day of month, month, day"
                " of week), e.g. '30 2 * * 1-5', or six with seconds in front, or one of"
                f" {', '.join(_SHORTHANDS)}"
            )
        allowed = [
            _parse_field(text, field, *rule) for field, rule in zip(fields, _FIELDS, strict=True)
        ]
        cron = cls(" ".join(fields), tuple(allowed))
        if cron.next_time(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)) is None:
            raise InputError(f"--cron {text!r}: there is no such day")
        return cron

    def next_time(self, after: datetime.datetime) -> datetime.datetime | None:
        """The first time later than `after`, in its time zone; None if there is none in 9 years."""
        seconds, minutes, hours, _, _, _ = map(sorted, self.fields)
        first = (after + datetime.timedelta(seconds=1)).replace(microsecond=0)
        for days in range(9 * 366):
            day = first.date() + datetime.timedelta(days=days)
            if not self._has(day):
                continue
            for hour, minute, second in itertools.product(hours, minutes, seconds):
                time_of_day = datetime.time(hour, minute, second, tzinfo=after.tzinfo)
                if (found := datetime.datetime.combine(day, time_of_day)) >= first:
                    return found
        return None

    def _has(self, day: datetime.date) -> bool:
        """Whether a day is one of these; of two restrictions on days, either is enough."""
        _, _, _, days, months, weekdays = self.fields
        _, _, _, days_text, _, weekdays_text = self.expression.split()
        in_month, in_week = day.day in days, day.isoweekday() % 7 in weekdays
        free = days_text[0] in "*?" or weekdays_text[0] in "*?"
        return day.month in months and (in_month and in_week if free else in_month or in_week)


def _parse_field(
    text: str, field: str, name: str, low: int, high: int, names: tuple[str, ...]
) -> frozenset[int]:
    """The values that one field of a cron expression allows."""
    values: set[int] = set()
    for part in field.upper().split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            step = int(step_text) if slash else 1
            if span in ("*", "?"):
                start, end = low, high
            else:
                start = _parse_value(first, low, names)
                end = _parse_value(last, low, names) if dash else (high if slash else start)
        except ValueError:
            start, end, step = high, low, 0
        if not (low <= start <= end <= high and step > 0):
            raise InputError(
                f"--cron {text!r}: {part!r} is no {name}; valid are *, {low} to {high}"
                + (f" or {names[0]} to {names[-1]}" if names else "")
                + ", ranges (a-b), steps (*/n) and lists (a,b)"
            )
        values.update(range(start, end + 1, step))
    return frozenset(values)


def _parse_value(text: str, low: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + low
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)
