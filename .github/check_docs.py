"""Check the Markdown files: relative links, their anchors, and the paths of this repository that the text names. Needs Python alone."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^\s*```.*?^\s*```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img\s[^>]*src=\"([^\"]+)\"")
CODE_PATH = re.compile(r"`((?:tests|llava_gateway|deploy|docs|examples|\.github)/[\w./-]*\w)`")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems(page: Path) -> Iterator[str]:
    """Yield a line for each link or path that leads nowhere."""
    text = FENCE.sub("", page.read_text())
    for markdown, html in LINK.findall(text):
        link = markdown or html
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: there is no {link}"
        elif anchor and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: {file or page.name} has no heading #{anchor}"
    for path in CODE_PATH.findall(text):
        if not (ROOT / path).exists():
            yield f"{page.relative_to(ROOT)}: there is no {path}"


def main() -> None:
    listed = subprocess.run(("git", "ls-files", "*.md"), capture_output=True, text=True, check=True, cwd=ROOT).stdout  # noqa: S607
    pages = [ROOT / name for name in listed.splitlines()]
    found = [problem for page in pages for problem in problems(page)]
    if found:
        sys.exit("\n".join(found))
    sys.stdout.write(f"{len(pages)} pages: all links lead somewhere\n")


if __name__ == "__main__":
    main()
