"""The format of a task's list."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from dae3d.scans.lists import Entry, ScanList, bare_names

TaskSplit = Literal["training", "validation", "test"]
SPLITS: tuple[TaskSplit, ...] = get_args(TaskSplit)


class TaskEntry(Entry):
    """One entry of a task's list; `weight` is how often crops are drawn from it, relative to others."""

    label: str | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class TaskList(ScanList):
    """A task's list."""

    labels: Any = None
    training: Sequence[TaskEntry] = ()
    validation: Sequence[TaskEntry] = ()
    test: Sequence[TaskEntry] = ()

    @field_validator("test", mode="before")
    @classmethod
    def _bare_tests(cls, entries: Any) -> Any:
        return bare_names(entries)

    def entries(self) -> Iterator[tuple[TaskSplit, int, TaskEntry]]:
        """All entries with their split and their index in it, from 0."""
        splits: dict[TaskSplit, Sequence[TaskEntry]] = {
            "training": self.training,
            "validation": self.validation,
            "test": self.test,
        }
        for split, entries in splits.items():
            for number, entry in enumerate(entries):
                yield split, number, entry
