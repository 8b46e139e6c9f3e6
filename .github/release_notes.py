"""Print the section of a version from CHANGELOG.md, for the notes of a release: release_notes.py VERSION [FILE]. Needs Python alone.

Links to files lead to the version's tag, because the page of a release is not in the repository.
"""

import re
import sys
from pathlib import Path

REPOSITORY = "https://github.com/llava-gateway/llava-gateway"
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def section(text: str, version: str) -> str:
    """Return the section of a version without its heading. Raises LookupError if there is none, or if it has no date."""
    found = re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if not found:
        raise LookupError(f"CHANGELOG.md has no section for {version} with a date")
    return re.sub(r"\]\((?![a-z]+:)", f"]({REPOSITORY}/blob/v{version}/", found[1].strip()) + "\n"


def main() -> None:
    version, *file = sys.argv[1:]
    try:
        sys.stdout.write(section(Path(*file or [CHANGELOG]).read_text(), version))
    except LookupError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
