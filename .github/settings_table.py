"""Write the table of docs/settings.md from their declarations. Run it with the Python of .venv after a change of a setting.

`tests/unit/test_docs.py` fails while the table and the declarations differ.
"""

import re
from pathlib import Path

from llava_gateway.settings import Settings, default_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
TABLE = re.compile(r"^\| flag \| default \| meaning \|\n(?:\|.*\n)+", re.MULTILINE)


def table() -> str:
    """Return the table in Markdown."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"`{default_of(name)}`" if default_of(name) else ""
        lines.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text, found = TABLE.subn(lambda _: table(), PAGE.read_text())
    if found != 1:
        raise SystemExit("docs/settings.md has no table of settings")
    PAGE.write_text(text)
