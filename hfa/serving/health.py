"""What anybody may ask: is it alive, would it answer, how has it done. Shown on the public port and on the status port.

These run on threads of their own: an engine that is busy with a long session holds its lock, and whoever waits for that
must not keep the others waiting.
"""

from __future__ import annotations

import math
import time

from fastapi import APIRouter, Response

from hfa.errors import RequestError
from hfa.network.base import Network, NetworkConfig
from hfa.serving.metrics import CONTENT_TYPE, Metrics
from hfa.serving.schemas import Health, Refusal, StatisticsBody
from hfa.serving.service import Service


def router(service: Service, network: Network, rules: NetworkConfig, metrics: Metrics) -> APIRouter:
    """The routes over what they need; `rules` say how old the view of the metagraph may be."""
    routes = APIRouter()
    started = time.monotonic()

    @routes.get("/health", summary="What is running here")
    def health() -> Health:
        """Answers as long as the process lives, models or not."""
        age_s = network.last_sync_age_s
        return Health(
            status="ok" if service.models else "no models",
            default=service.default,
            models={name: model.status() for name, model in service.models.items()},
            network=network.name,
            netuid=network.netuid,
            hotkey=network.hotkey,
            metagraph_age_s=age_s if math.isfinite(age_s) else None,
            uptime_s=time.monotonic() - started,
        )

    @routes.get(
        "/ready", summary="Whether requests can be answered", responses={503: {"model": Refusal}}, status_code=204
    )
    def ready() -> Response:
        """204 when a model would take a request now, 503 with the reason when none would."""
        if not service.models:
            raise RequestError(503, "No model is loaded.")
        age_s = network.last_sync_age_s
        if age_s > rules.max_staleness_s and not rules.allow:  # those on the list are answered whatever the chain does
            raise RequestError(503, f"The metagraph was last seen {age_s:.0f} s ago, so all callers are refused.")
        if not any(model.engine.load().room for model in service.models.values()):
            raise RequestError(503, "All places in the queues are taken, or the miner is shutting down.")
        return Response(status_code=204)

    @routes.get("/statistics", summary="The track record of each architecture")
    def statistics() -> StatisticsBody:
        """Counts, times and tokens since the statistics file was begun, restarts included."""
        return StatisticsBody(architectures=service.statistics.report())

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def prometheus() -> Response:
        """The same numbers since the process began, and the load of the moment, in the text format of Prometheus."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return routes
