"""Routing: which channels a token is sent to, how strongly, and what it writes there and reads."""

from hfa.ops.routing.naive import naive_route, naive_routed_scan
from hfa.ops.routing.operator import routed_scan_operator
from hfa.ops.routing.recurrent import Routing, recurrent_routed_scan
from hfa.ops.routing.scan import routed_scan, routes
from hfa.ops.routing.step import RoutedWeights, routed_layer_step
from hfa.ops.routing.threshold import FASTEST_DECAY, ROUTERS, route

__all__ = [
    "FASTEST_DECAY",
    "ROUTERS",
    "RoutedWeights",
    "Routing",
    "naive_route",
    "naive_routed_scan",
    "recurrent_routed_scan",
    "route",
    "routed_layer_step",
    "routed_scan",
    "routed_scan_operator",
    "routes",
]
