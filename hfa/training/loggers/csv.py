"""metrics.csv: the one log that every run writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from hfa.errors import CheckpointError
from hfa.training.runs import read_metrics


class MetricsCSV(Logger):
    """One row per logged step, one column per metric, on disk before the next step begins.

        step,train/loss,lr,val/loss
        10,5.61,0.0001,
        20,5.37,0.0002,
        20,,,5.40

    A cell is empty where nothing was logged; numbers are written so that they read back exactly.

    Args:
        path: the file.
        resumed_from: a metrics.csv whose rows up to `resumed_step` begin this one.
        resumed_step: the step of the checkpoint the run goes on from.
    """

    def __init__(self, path: Path, *, resumed_from: Path | None = None, resumed_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = ["step"]
        self._rows: list[dict[str, Any]] = []
        if resumed_from is not None and resumed_from.exists():
            try:
                rows = [row for row in read_metrics(resumed_from) if 0 <= row["step"] <= resumed_step]
            except (ValueError, KeyError, TypeError, csv.Error) as error:  # bytes that are no text are a ValueError
                raise CheckpointError(f"{resumed_from}: no metrics.csv of a run ({error}); move it away.") from None
            for row in rows:
                self.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml in the run directory has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        self._rows.append(row)
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self) -> None:
        fresh = self.path.with_suffix(".new")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        fresh.replace(self.path)
