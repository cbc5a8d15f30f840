"""One HTML page of any runs and results: ``python -m experiments.report outputs/mine experiments/complexity/results``.

Folders are searched for runs of train.py (trainings, evaluations) and for what studies recorded: runs.jsonl,
cells.jsonl, trials.jsonl and the JSON of experiments.complexity. The page is one file, and needs no network.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from experiments.entry import leave, program
from experiments.report.charts import colours, draw
from experiments.report.collect import collect
from experiments.report.run import Found
from experiments.report.sections import amounts, sections


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="run directories, folders of them, files of results")
    parser.add_argument("--out", type=Path, default=Path("outputs/report.html"), help="(default: %(default)s)")
    parser.add_argument("--title", default="What was measured", help="(default: %(default)s)")
    asked = parser.parse_args(arguments)
    found = collect(asked.paths)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    typed = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.report", *typed])
    asked.out.write_text(page(found, asked.title, command), encoding="utf-8")
    for sentence in found.left_out:
        sys.stderr.write(f"{sentence}\n")
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
    environment.filters["breakable"] = breakable
    parts = sections(found)
    palette = colours([chart for section in parts for chart in section.all_charts()])
    return environment.get_template("page.html.j2").render(
        title=title,
        command=command,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        amounts=amounts(found),
        left_out=found.left_out,
        sections=parts,
        draw=lambda chart: Markup(draw(chart, palette)),
    )


def breakable(text: str) -> Markup:
    """A name that may go on in the next line after a slash, an underscore, an equals sign or a key's dot, and not
    within a date.
    """
    parts = re.sub(r"([/_=](?=\w\w)|\.(?=[a-z]))", r"\1<wbr>", str(escape(text)))
    return Markup(re.sub(r"(\d{4}-\d\d-\d\d)", r'<span class="date">\1</span>', parts))


if __name__ == "__main__":
    leave(main)
