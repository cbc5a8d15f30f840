"""Log records as JSON, one object a line, for whoever collects them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """Time, level, logger and message, the traceback if there is one, and every field that was logged with `extra`.

    {"time": "2026-11-23T04:06:06.123456+00:00", "level": "INFO", "logger": "hfa.serving.reply", "message": ...}
    """

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        content |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps(content, default=str, ensure_ascii=False)
