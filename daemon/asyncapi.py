"""The topics as an AsyncAPI 3.0 document, generated from the payload types."""

from typing import Any

from daemon.topics import PAYLOADS, json_schemas

_RETAINED = {"status", "info", "health", "availability", "last"}
_AT_MOST_ONCE = {"live", "candle"}
_LEVELS = {
    "exchange": "Exchange as ccxt calls it, `binance`.",
    "market": "Market slug, one to one with the ccxt symbol: `BTC-USDT-PERP`.",
    "spec": "Candle spec: `1m`.",
    "command": "`status`, `replay`, `log_level` or `reload`.",
}


def document(*, version: str, base: str = "lstmd") -> dict[str, Any]:
    """Describe every topic under `base`, its payload, quality of service and retention."""
    schemas, named = _components()
    channels, operations = {}, {}
    for pattern, payload in PAYLOADS.items():
        name = pattern.replace("{", "").replace("}", "").replace("/", ".")
        messages = _messages(pattern, payload.__name__)
        channels[name] = {
            "address": f"{base}/{pattern}",
            "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
            "parameters": {
                level: {"description": text} for level, text in _LEVELS.items() if f"{{{level}}}" in pattern
            },
        }
        operations[name] = {
            "action": "receive" if pattern.startswith("request/") else "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "bindings": {"mqtt": _binding(pattern)},
        }
    messages_ = {
        name: {"contentType": "application/json", "payload": reference} for name, reference in sorted(named.items())
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "lstmd", "version": version, "description": "Signals on closed candles of crypto futures."},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages_, "schemas": schemas},
    }


def _messages(pattern: str, payload: str) -> list[str]:
    return [payload, "Void"] if pattern.endswith(("/signal", "/last")) else [payload]


def _binding(pattern: str) -> dict[str, Any]:
    leaf = pattern.rsplit("/", maxsplit=1)[-1]
    return {"qos": 0 if leaf in _AT_MOST_ONCE else 1, "retain": leaf in _RETAINED}


def _components() -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Gather all payload types and the types inside them under one roof, with their references turned to it."""
    shared: dict[str, Any] = {}
    named: dict[str, dict[str, str]] = {}
    for name, schema in json_schemas().items():
        shared.update(schema.get("$defs", {}))
        named[name] = {"$ref": schema["$ref"].replace("#/$defs/", "#/components/schemas/")}
    return _turned(shared), named


def _turned(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _turned(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_turned(value) for value in node]
    return node.replace("#/$defs/", "#/components/schemas/") if isinstance(node, str) else node
