"""Shards of a job array: which scans each prepares, and the files in which each leaves its results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

# Named after dae3d because the folder is deleted with everything in it.
PARTS = "dae3d-parts"
_NAME = re.compile(r"-\d+-of-(\d+)(?:\.jsonl)?$")


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 0) of `of`: it takes every `of`-th scan of a manifest, or run of a study."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Parse `i/n`.

        Raises:
            ValueError: if it is not two numbers with i < n.
        """
        words = re.fullmatch(r"(\d+)/(\d+)", text)
        if words is None or int(words[1]) >= int(words[2]):
            raise ValueError("must be i/n with i from 0 to n - 1, such as 0/8")
        return cls(int(words[1]), int(words[2]))

    @property
    def name(self) -> str:
        """The shard's name in file names."""
        return f"{self.number}-of-{self.of}"

    @property
    def index(self) -> str:
        """The store's file that lists the shard's scans."""
        return f"{PARTS}/index-{self.name}.jsonl"

    @property
    def rejected(self) -> str:
        """The store's file that lists the scans that the shard rejected."""
        return f"{PARTS}/rejected-{self.name}.csv"

    @property
    def lock(self) -> str:
        """The store's file that is locked while the shard is running."""
        return f"{PARTS}/.lock-{self.name}"


def _parsed(text: str) -> str:
    Shard.parse(text)
    return text


ShardText = Annotated[str, AfterValidator(_parsed)]  # of a setting


def all_shards(of: int) -> list[Shard]:
    """All shards of an array."""
    return [Shard(number, of) for number in range(of)]


def unfinished(store: Path) -> list[Shard]:
    """The shards that the store's index still waits for; empty if it was not prepared in shards."""
    parts = [path for path in (store / PARTS).glob("*") if _NAME.search(path.name)]
    newest = max(parts, key=lambda path: path.stat().st_mtime_ns, default=Path())
    name = _NAME.search(newest.name)
    return [s for s in all_shards(int(name[1])) if not (store / s.index).is_file()] if name else []


def shard_list(shards: Sequence[Shard]) -> str:
    """`shard 2 of 8`, or `shards 2, 5 of 8`."""
    numbers = ", ".join(str(shard.number) for shard in shards)
    return f"{'shard' if len(shards) == 1 else 'shards'} {numbers} of {shards[0].of}"
