"""One HTML page of any runs and results: ``python -m experiments.report outputs/mine experiments/complexity/results``.

Folders are searched for runs of train.py (trainings, evaluations) and for what studies recorded: runs.jsonl,
cells.jsonl and the JSON of experiments.complexity. The page is one file, and needs no network.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.report.collect import Found, collect
from experiments.report.sections import amounts, sections
from hfa.errors import HFAError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="run directories, folders of them, files of results")
    parser.add_argument("--out", type=Path, default=Path("outputs/report.html"), help="(default: %(default)s)")
    parser.add_argument("--title", default="What was measured", help="(default: %(default)s)")
    asked = parser.parse_args(arguments)
    found = collect(asked.paths)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "experiments.report", *map(str, asked.paths)])
    asked.out.write_text(page(found, asked.title, command), encoding="utf-8")
    sys.stdout.write(f"{asked.out}\n")
    return 0


def page(found: Found, title: str, command: str) -> str:
    """The page, as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        command=command,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        amounts=amounts(found),
        sections=sections(found),
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HFAError as error:
        sys.exit(f"{error}")
