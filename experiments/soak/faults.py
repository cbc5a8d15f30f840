"""What goes wrong during the soak, one after another, on a thread of its own."""

from __future__ import annotations

import resource
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from experiments.soak.world import Worker, World
from hfa import checkpoint
from hfa.data.tokenizers.byte import ByteTokenizer


class Faults:
    """Injects one fault after another, again and again.

    Args:
        world: whose chain, disk and artifacts suffer.
        workers: the last one is killed; the first never is, so that its memory can be watched.
        every_s: between two faults.
    """

    def __init__(self, world: World, workers: list[Worker], every_s: float) -> None:
        self._world, self._workers, self._every_s = world, workers, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self._version = 0
        self._began = time.monotonic()
        self.log: list[dict[str, Any]] = []
        self.error: Exception | None = None  # that ended them

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the fault of the moment pass."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        kinds = (
            self.chain_away,
            self.worker_killed,
            self.weights_swapped,
            self.disk_slow,
            self.model_failing,
            self.disk_full,
            self.artifact_of_nan,
            self.artifact_torn,
            self.runtime_upgraded,
        )
        number = 0
        try:
            while not self._stopping.wait(self._every_s):
                self._inject(kinds[number % len(kinds)])
                number += 1
        except Exception as error:  # the soak goes on, and says that it held nothing against this any more
            self.error = error
            traceback.print_exc()

    def _inject(self, fault: Callable[[], None]) -> None:
        began = time.monotonic()
        fault()
        entry = {"fault": fault.__name__, "at_s": round(began - self._began, 1)}
        self.log.append(entry | {"lasted_s": round(time.monotonic() - began, 1)})

    def chain_away(self) -> None:
        """The node dies, and comes back on the same port."""
        self._world.node.kill()
        self._stopping.wait(10)
        self._world.node.start()

    def runtime_upgraded(self) -> None:
        self._world.node.spec_version += 1
        self._world.node.block += 1

    def worker_killed(self) -> None:
        """SIGKILL, in the middle of whatever it does, and a new process."""
        self._workers[-1].kill()
        self._workers[-1].start()

    def weights_swapped(self) -> None:
        """The other version of both architectures becomes the latest; the watchers take it in."""
        self._version = 1 - self._version
        for name in self._world.versions:
            self._world.deploy(name, self._version)

    def model_failing(self) -> None:
        """A model that passes its warm-up becomes the latest, for a while, and fails at some of what it is asked."""
        self._world.poison("hfa", self._version)
        self._stopping.wait(12)
        self._world.deploy("hfa", self._version)

    def artifact_of_nan(self) -> None:
        """An artifact whose every logit is NaN becomes the latest, for a while."""
        model = self._world.versions["hfa"][self._version]
        broken = model.config.build()
        broken.load_state_dict({name: value * float("nan") for name, value in model.state_dict().items()})
        checkpoint.save(self._world.artifact("hfa"), model=broken, tokenizer=ByteTokenizer(), provenance={})
        self._stopping.wait(6)
        self._world.deploy("hfa", self._version)

    def artifact_torn(self) -> None:
        """The latest artifact is cut in the middle, for a while."""
        weights = self._world.artifact("simplemind") / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        self._stopping.wait(6)
        self._world.deploy("simplemind", self._version)

    def disk_slow(self) -> None:
        """Every write to the replay store waits for seconds."""
        store = self._world.folder / "nonces" / f"{self._world.miner}.sqlite3"
        connection = sqlite3.connect(store, timeout=30, isolation_level=None)
        for _ in range(3):
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(2.5)
            connection.execute("COMMIT")
            time.sleep(0.2)
        connection.close()

    def disk_full(self) -> None:
        """No file of the last worker can grow, for a while."""
        process = self._workers[-1].process
        assert process is not None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        self._stopping.wait(5)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
