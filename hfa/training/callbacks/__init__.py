"""What happens beside the steps of a run. Some of it is configured, the rest belongs to every run."""

from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.callbacks.checkpoints import Checkpoints, CheckpointsConfig
from hfa.training.callbacks.interruption import Interrupted, Interruption
from hfa.training.callbacks.progress import Progress, ProgressConfig
from hfa.training.callbacks.recall_map import RecallMap, RecallMapConfig
from hfa.training.callbacks.routing_map import RoutingMap, RoutingMapConfig
from hfa.training.callbacks.samples import Samples, SamplesConfig
from hfa.training.callbacks.stopping import EarlyStoppingConfig
from hfa.training.callbacks.telemetry import Clock, Telemetry
from hfa.training.callbacks.validation import ValidateLast, validation_follows

__all__ = [
    "CallbackConfig",
    "Checkpoints",
    "CheckpointsConfig",
    "Clock",
    "EarlyStoppingConfig",
    "Interrupted",
    "Interruption",
    "Progress",
    "ProgressConfig",
    "RecallMap",
    "RecallMapConfig",
    "RoutingMap",
    "RoutingMapConfig",
    "Samples",
    "SamplesConfig",
    "Surroundings",
    "Telemetry",
    "ValidateLast",
    "validation_follows",
]
