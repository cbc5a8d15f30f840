"""The web application of a miner."""

from __future__ import annotations

import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hfa.config import Config, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError
from hfa.network.base import Network, NetworkConfig
from hfa.serving import health, openai, refusal, routes, sessions, status, synapse
from hfa.serving.admission import BodyReader, Places, RateLimiter
from hfa.serving.auth import Gate
from hfa.serving.metrics import Metrics
from hfa.serving.service import Limits, Service

_MAX_PORT = 65535
_DESCRIPTION = """A miner that serves language models with a long memory.

Generation is for hotkeys of the subnet: sign the request with `btauth/1` (`bittensor.http_auth`), for the hotkey that
`/health` shows as its receiver. The other paths are open.

Every error is `{"error": {"code": ..., "message": ...}}` with one sentence that says what to do; on OpenAI's paths it
has that API's `type` and `param` as well."""
_SECURITY = {
    "type": "apiKey",
    "in": "header",
    "name": "X-Bittensor-Signature",
    "description": "btauth/1: the headers X-Bittensor-Version, -Hotkey, -Receiver, -Nonce and -Signature, as made by "
    "`bittensor.http_auth.sign` over method, path with query, and raw body.",
}
_LEGACY_SECURITY = {
    "type": "apiKey",
    "in": "header",
    "name": "bt_header_dendrite_signature",
    "description": "The headers of a Dendrite of Bittensor v9 or v10.",
}


@config
class ServerConfig(Config):
    """The HTTP server and what it lets in.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        status_host: address that the status page is shown on, in plain HTTP and without signatures; with it come
            /health, /ready, /statistics and /metrics.
        status_port: and its port; 0 takes a free one, null shows none.
        tls_certificate: a PEM file with the certificate chain; null serves plain HTTP.
        tls_key: a PEM file with its key.
        max_body_bytes: of a request.
        body_timeout_s: for it to arrive.
        max_import_bytes: of a session that is imported.
        import_timeout_s: for it to arrive.
        max_imports: sessions received together before their senders are proven, and taken up together after that.
        max_exports: sessions sent together, of different hotkeys.
        max_uploads: request bodies held together before their senders are proven.
        max_uploads_per_address: of one address.
        max_connections: open together; for one more, one whose sender is not proven is closed.
        max_connections_per_address: of one address; more are closed.
        head_timeout_s: for a request's headers to arrive; and before them for TLS's handshake, in which a connection is
            not counted yet.
        write_timeout_s: a connection that takes less than 64 KiB of a long answer in this time is closed.
        rate_per_s: requests a second per hotkey in the long run.
        rate_burst: and at once.
        default_max_tokens: to generate when a request does not say.
        max_tokens: to generate at most.
        deadline_s: after which any answer ends as it is.
        share_prompts: let prompts of different hotkeys that begin alike share what was read of them; quicker, and it
            tells each caller whether others have sent the beginning of its prompt.
        keep_alive_s: an idle connection stays open.
        drain_s: that running requests get when the miner stops.
    """

    host: str
    port: NonNegativeInt
    status_host: str
    status_port: NonNegativeInt | None
    tls_certificate: str | None
    tls_key: str | None
    max_body_bytes: PositiveInt
    body_timeout_s: PositiveFloat
    max_import_bytes: PositiveInt
    import_timeout_s: PositiveFloat
    max_imports: PositiveInt
    max_exports: PositiveInt
    max_uploads: PositiveInt
    max_uploads_per_address: PositiveInt
    max_connections: PositiveInt
    max_connections_per_address: PositiveInt
    head_timeout_s: PositiveFloat
    write_timeout_s: PositiveFloat
    rate_per_s: PositiveFloat
    rate_burst: PositiveInt
    default_max_tokens: PositiveInt
    max_tokens: PositiveInt
    deadline_s: PositiveFloat
    share_prompts: bool
    keep_alive_s: PositiveInt
    drain_s: NonNegativeFloat

    def check(self) -> None:
        for key, port in (("port", self.port), ("status_port", self.status_port)):
            if port is not None and port > _MAX_PORT:
                raise ConfigError(key, port, f"0 to {_MAX_PORT}", "0 takes a free one")
        if (self.tls_certificate is None) != (self.tls_key is None):
            expected = "a PEM file of the key, as there is a certificate"
            raise ConfigError("tls_key", self.tls_key, expected, "set both or neither of tls_certificate and tls_key")
        for name, path in (("tls_certificate", self.tls_certificate), ("tls_key", self.tls_key)):
            if path is not None and not Path(path).expanduser().is_file():
                raise ConfigError(name, path, "a PEM file that is there")
        if self.tls_certificate is not None and self.tls_key is not None:
            _check_pair(Path(self.tls_certificate).expanduser(), Path(self.tls_key).expanduser())
        if self.default_max_tokens > self.max_tokens:
            raise ConfigError("default_max_tokens", self.default_max_tokens, f"at most max_tokens={self.max_tokens}")

    def limits(self) -> Limits:
        return Limits(self.default_max_tokens, self.max_tokens, self.deadline_s, self.share_prompts)


def _check_pair(certificate: Path, key: Path) -> None:
    """Raises ConfigError for what TLS could not be served with."""

    def password() -> str:
        raise ConfigError("tls_key", str(key), "a key without a password, which a service has nobody to ask for")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password)
    except OSError as error:  # as those of ssl are
        what = f"the PEM file of a certificate and, in tls_key, that of its key ({error.strerror or error})"
        raise ConfigError("tls_certificate", str(certificate), what) from None


def create_app(
    service: Service, network: Network, rules: NetworkConfig, settings: ServerConfig, metrics: Metrics
) -> FastAPI:
    """The application over running engines and a network; it owns neither.

    Args:
        service: what answers.
        network: who may ask.
        rules: of the network, for those who ask whether the miner is ready.
        settings: limits.
        metrics: counts what is refused.
    """
    app = FastAPI(
        title="hfa miner",
        version=version("hfa"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a signature holds for one path
    )
    uploads, per_address = settings.max_uploads, settings.max_uploads_per_address
    bodies = BodyReader(settings.max_body_bytes, settings.body_timeout_s, uploads, per_address)
    imports = BodyReader(
        settings.max_import_bytes, settings.import_timeout_s, settings.max_imports, settings.max_imports
    )
    limiter = RateLimiter(settings.rate_per_s, settings.rate_burst)
    gate = Gate(network, limiter, bodies)
    app.include_router(routes.router(service, gate, metrics))
    app.include_router(health.router(service, network, rules, metrics))
    app.include_router(openai.router(service, gate, metrics))
    loading, exports = Places(settings.max_imports, "import"), Places(settings.max_exports, "export")
    app.include_router(sessions.router(service, gate, Gate(network, limiter, imports), loading, exports, metrics))
    if network.dendrite is not None:
        app.include_router(synapse.router(service, gate, network.dendrite, metrics))
    refusal.install(app, metrics.refused, openai.shape)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def create_status_app(service: Service, network: Network, rules: NetworkConfig, metrics: Metrics) -> FastAPI:
    """What the operator looks at: the page, and what monitors ask for, without TLS and signatures in the way."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(status.router(service, network, metrics))
    app.include_router(health.router(service, network, rules, metrics))
    refusal.install(app, lambda code: None)
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemes = {"btauth": _SECURITY, "dendrite": _LEGACY_SECURITY}
        schema.setdefault("components", {}).setdefault("securitySchemes", {}).update(schemes)
        app.openapi_schema = schema
    return app.openapi_schema
