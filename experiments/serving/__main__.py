"""`python -m experiments.serving`: what serving costs, beside the fastest linear peer; `--quick` takes minutes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from experiments.complexity.__main__ import environment, processor, rounded
from experiments.entry import leave

RESULTS = Path(__file__).parent / "results"
OUTPUTS = Path("outputs/serving")


def main(arguments: list[str]) -> int:
    """Measure what is missing, save after every part, draw; returns the exit code."""
    options = parse(arguments)
    os.environ.update(environment(1))  # before torch is imported
    import torch

    from experiments.serving.parts import FULL, PARTS, QUICK
    from experiments.serving.plot import CLAIMS, plot
    from hfa.training.provenance import provenance

    torch.set_num_threads(1)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        sys.stderr.write(f"--parts: got {unknown[0]!r}, expected some of {', '.join(PARTS)}.\n")
        return 2
    sizes = QUICK if options.quick else FULL
    folder = RESULTS if options.record else OUTPUTS
    path = folder / ("quick.json" if options.quick else "serving.json")
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"parts": {}}
    for name in options.parts or PARTS:
        if name in data["parts"] and not options.again:
            print(f"{name}: there already; --again measures it anew")
            continue
        print(f"{name}: {sizes[name]}", flush=True)
        facts = provenance({"seed": 0, **sizes[name]}, processor=processor(), load_at_start=os.getloadavg()[0])
        measured = PARTS[name](sizes[name], lambda line: print(f"  {line}", flush=True))
        facts["load_at_end"] = os.getloadavg()[0]
        data["parts"][name] = {**measured, "provenance": facts}
        path.write_text(json.dumps(rounded(data), indent=1), encoding="utf-8")
    width = max(len(claim[0]) for claim in CLAIMS)
    print(f"\n{'figure':{width}} {'measured':>10} {'asked':>10}")
    for label, part, key, limit, more in CLAIMS:
        value = data["parts"].get(part, {}).get(key)
        shown, said = "-", "not measured"
        if value is not None:
            shown = f"{value:.3g}"
            said = "holds" if (value >= limit if more else value <= limit) else "DOES NOT HOLD"
        print(f"{label:{width}} {shown:>10} {'>=' if more else '<='} {limit:7g} {said}")
    print(f"\nresults: {path}\nplot: {plot(data, path.with_suffix('.png'))}")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.serving", description=__doc__)
    parser.add_argument("--parts", default="", help="comma-separated; all of them unless said")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a look: the figures mean little")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--record", action="store_true", help="keep the results beside the study, in results/")
    options = parser.parse_args(arguments)
    options.parts = [name.strip() for name in options.parts.split(",") if name.strip()]
    return options


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1:]), "Interrupted; the parts that were measured are kept.")
