"""The status page: what an operator wants to see at a glance, in one piece of HTML without scripts or secrets."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from html import escape

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from hfa.network.base import Network
from hfa.serving.metrics import Metrics
from hfa.serving.schemas import ModelStatistics
from hfa.serving.service import Served, Service
from hfa.serving.statistics import Record, when

_NEURONS = 64  # shown at most, those with the greatest stake
_REFRESH_S = 5
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .25rem .6rem .25rem 0; text-align: left; }
th { font-weight: 600; border-bottom: 1px solid #d0d7de; } tr + tr td { border-top: 1px solid #eaeef2; }
.n { text-align: right; font-variant-numeric: tabular-nums; } .dim { color: #656d76; } .bad { color: #b42318; }
code { font: 13px ui-monospace, monospace; } progress { width: 6rem; }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e8ea; } th { border-color: #3a4047; }
  tr + tr td { border-color: #24292e; } .dim { color: #9aa4ae; } .bad { color: #ff8a7a; } }
"""
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-frame-options": "DENY",
}


def router(service: Service, network: Network, metrics: Metrics) -> APIRouter:
    """The page."""
    routes = APIRouter()
    started = time.monotonic()

    @routes.get("/", include_in_schema=False)
    def status() -> HTMLResponse:
        uptime_s = time.monotonic() - started
        return HTMLResponse(page(service, network, metrics.refusals(), uptime_s), headers=_HEADERS)

    return routes


def page(service: Service, network: Network, refusals: Mapping[str, int], uptime_s: float) -> str:
    """The HTML; every text in it is escaped."""
    me = network.neuron(network.hotkey)
    uid = "deregistered" if me is None else f"uid {me.uid}"
    age_s = network.last_sync_age_s
    seen = f"metagraph seen {age_s:.0f} s ago" if math.isfinite(age_s) else "metagraph not seen yet"
    where = f"netuid {network.netuid} on {network.name}, {uid}, {(me and me.endpoint) or 'no endpoint published'}"
    statistics = service.statistics.report()
    body = [
        "<h1>hfa miner</h1>",
        f"<div class=dim>{escape(where)}; {seen}; up {_duration(uptime_s)}</div>",
        f"<div class=dim><code>{escape(network.hotkey)}</code></div>",
        _section("Models", _models(service.models, service.default)),
        _section("Answers", _answers(statistics)),
        _section("Last errors", _errors(service.statistics.totals())),
        _section("Refused", _table(("code", "#requests"), sorted(refusals.items())) if refusals else ""),
        _section("Metagraph", _metagraph(network)),
    ]
    head = f"<meta charset=utf-8><meta http-equiv=refresh content={_REFRESH_S}><title>hfa miner</title>"
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"


def _models(models: Mapping[str, Served], default: str) -> str:
    rows = []
    for name, model in models.items():
        now = model.status()
        places = model.engine.load().max_concurrent
        memory = f"{now.state_bytes / 2**20:,.0f} of {now.budget_bytes / 2**20:,.0f} MiB"
        role = f"{name} (default)" if name == default else name
        rows.append(
            (role, now.device, f"{now.parameters:,}", f"{now.max_seq_len:,}", f"{now.running} of {places}",
             f"{now.waiting}", memory, str(model.path))
        )  # fmt: skip
    titles = ("model", "device", "#parameters", "#longest", "#running", "#waiting", "#memory for states", "artifact")
    return _table(titles, rows) if rows else "<div class=bad>No model is loaded.</div>"


def _answers(statistics: Mapping[str, ModelStatistics]) -> str:
    rows = [
        (name, f"{one.requests:,}", _percent(one.success_rate), f"{one.failed:,}", f"{one.cancelled:,}",
         f"{one.expired:,}", _seconds(one.p50_s), _seconds(one.p95_s), _rate(one.prefill_tokens_per_s),
         _rate(one.tokens_per_s))
        for name, one in statistics.items()
    ]  # fmt: skip
    titles = (
        "model",
        "#requests",
        "#success",
        "#failed",
        "#given up",
        "#cut off",
        "#median",
        "#p95",
        "#prefill",
        "#decode",
    )
    return _table(titles, rows) if rows else ""


def _errors(records: Mapping[str, Record]) -> str:
    rows = [(name, when(record.error_at), record.error) for name, record in records.items() if record.error]
    return _table(("model", "at", "error"), rows) if rows else ""


def _metagraph(network: Network) -> str:
    neurons = sorted(network.neurons(), key=lambda neuron: -neuron.stake_tao)
    rows = [
        (str(neuron.uid), neuron.hotkey, f"{neuron.stake_tao:,.1f}", "validator" if neuron.validator_permit else "",
         neuron.endpoint or "")
        for neuron in neurons[:_NEURONS]
    ]  # fmt: skip
    rest = f"<div class=dim>and {len(neurons) - _NEURONS} more</div>" if len(neurons) > _NEURONS else ""
    return _table(("#uid", "hotkey", "#stake, TAO", "permit", "endpoint"), rows) + rest


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content or '<div class=dim>none</div>'}"


def _table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; titles that begin with # are of numbers."""
    titles = list(titles)
    kinds = [" class=n" if title.startswith("#") else "" for title in titles]
    head = "".join(f"<th{kind}>{title.removeprefix('#')}</th>" for kind, title in zip(kinds, titles, strict=True))
    lines = (
        "".join(f"<td{kind}>{escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    days = f"{hours // 24} d " if hours >= 24 else ""
    return f"{days}{hours % 24} h {minutes} min"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.1%}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} s"


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}/s"
