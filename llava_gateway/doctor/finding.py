"""The result of one check."""

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "note", "fault"]
"""`fault`: a server cannot start. `note`: a server starts, but something is missing or slow."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, for `llava-gateway doctor` to print."""

    name: str
    """The subject of the check, such as `memory`."""
    level: Level
    text: str
    """One sentence, without a full stop."""
    remedy: str = ""
    """What to do, as one sentence. Empty if nothing needs to be done."""

    def lines(self, width: int) -> str:
        """Return the lines for people. `width`: of the longest name, in characters."""
        head = f"{self.level:5}  {self.name:{width}}  {self.text}"
        return f"{head}\n{'':{9 + width}}-> {self.remedy}" if self.remedy else head

    def as_dict(self) -> dict[str, str]:
        """Return the fields for JSON."""
        return asdict(self)
