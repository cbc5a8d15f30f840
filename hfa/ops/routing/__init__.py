"""Routing: which channels a token is sent to, and how strongly."""

from hfa.ops.routing.naive import naive_route
from hfa.ops.routing.threshold import ROUTERS, route

__all__ = ["ROUTERS", "naive_route", "route"]
