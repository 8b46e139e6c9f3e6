"""Finds processes by their names. A process that ends while one looks for it is not found, and is no error."""

import psutil


def description(process: psutil.Process) -> str:
    """Return the name and the command line of a process, or nothing if it has ended.

    vLLM's processes change their names, and some change the command line alone.
    """
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.NoSuchProcess:
        return ""


def descendants(pid: int, text: str) -> list[psutil.Process]:
    """Return the descendants of the process `pid` whose name or command line contains `text`."""
    return [child for child in psutil.Process(pid).children(recursive=True) if text in description(child)]


def own_children(text: str) -> list[psutil.Process]:
    """Return the children of this process whose command line contains `text`. Those of a server that the tests share are not among them."""
    return [child for child in psutil.Process().children() if text in description(child)]
