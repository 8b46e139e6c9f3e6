"""Hooks of MkDocs for the documentation site: reference pages from the code, and links to files outside docs/.

`make docs` builds the site. The Markdown files of docs/ stay readable in the repository, where their links lead to files.
"""

import asyncio
import importlib
import posixpath
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from prometheus_client import REGISTRY

from llava_gateway import errors
from llava_gateway.cli.main import COMMANDS
from llava_gateway.observability import metrics  # noqa: F401 # registers the metrics

sys.path.append(str(Path(__file__).parent))  # MkDocs runs this file by its path
import api_reference

OUTSIDE = re.compile(r"(\]\(|<img src=\")(\.\./[^)\"\s]+)")
"""A link to a file of the repository outside docs/."""
CORRECTIONS = {
    ' data-md-component="source"': "",  # the theme's script would ask GitHub for the repository's stars
    'data-md-component="search" role="dialog"': 'data-md-component="search" role="dialog" aria-label="Search"',
}
"""Texts of the theme's pages, and what takes their place."""
PUBLIC = ("llava_gateway.app.create_app", "llava_gateway.settings.Settings", "llava_gateway.types.ChatRequest", "llava_gateway.types.Delta")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference pages."""
    for name, content in asyncio.run(_pages()).items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


async def _pages() -> dict[str, str]:
    """Return the reference pages. The metric of tasks needs a running event loop."""
    pages = {"commands": _commands(), "errors": _errors(), "metrics": _metrics(), "python": _python()}
    apis = [line async for line in api_reference.page()]
    return {"apis": "\n".join(apis)} | {name: "\n".join(lines) for name, lines in pages.items()}


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files outside docs/ to the repository's page of the file."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[2]))
        return found[0] if path.startswith("docs/") else f"{found[1]}{config.repo_url}/blob/main/{path}"

    return OUTSIDE.sub(link, markdown)


def on_post_template(output_content: str, *, template_name: str, config: MkDocsConfig) -> str:
    """Correct the theme's page for addresses that lead nowhere."""
    return _correct(output_content) if template_name.endswith(".html") else output_content


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Correct what the theme writes into each page."""
    return _correct(output)


def _correct(page: str) -> str:
    """Return a page with the corrections. Raise PluginError if the theme no longer has a text that they replace."""
    for text, better in CORRECTIONS.items():
        if text not in page:
            raise PluginError(f"the theme's pages no longer have {text}")
        page = page.replace(text, better)
    return page


def _commands() -> Iterator[str]:
    """Yield the page of the commands and their flags."""
    yield "# Commands\n\n`llava-gateway COMMAND --help` prints the same texts."
    for name, summary in COMMANDS.items():
        parser = importlib.import_module(f"llava_gateway.cli.{name.replace('-', '_')}").make_parser()
        yield f"\n## {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{parser.format_help()}```"


def _errors() -> Iterator[str]:
    """Yield the page of the errors."""
    yield "# Errors\n\n[openai.md](../openai.md#errors) and [reliability.md](../reliability.md) list the codes and their causes.\n"
    yield f"```text\n{cleandoc(errors.__doc__ or '')}\n```"


def _metrics() -> Iterator[str]:
    """Yield the page of the gateway's own metrics."""
    yield "# Metrics\n\n`GET /metrics` also has vLLM's own metrics (`vllm:*`).\n\n| metric | type | meaning |\n|---|---|---|"
    for family in sorted(REGISTRY.collect(), key=lambda each: each.name):
        if family.name.startswith("llava_"):
            suffix = "_total" if family.type == "counter" else ""
            yield f"| `{family.name}{suffix}` | {family.type} | {family.documentation} |"


def _python() -> Iterator[str]:
    """Yield the page of the Python API, which mkdocstrings fills."""
    yield "# Python\n\nFor programs that embed the gateway or use its parts.\n"
    for name in PUBLIC:
        yield f"::: {name}\n"
