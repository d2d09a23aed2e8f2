"""The AsyncAPI document names every topic and holds together."""

import json
from collections.abc import Iterator
from typing import Any

from daemon.asyncapi import document
from daemon.topics import PAYLOADS


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(root: Any, reference: str) -> Any:
    assert reference.startswith("#/")
    node = root
    for key in reference[2:].split("/"):
        node = node[key]
    return node


def test_every_topic_is_a_channel_with_its_payload() -> None:
    api = document(version="1.2.3", base="base")
    assert {channel["address"] for channel in api["channels"].values()} == {f"base/{topic}" for topic in PAYLOADS}
    assert api["info"]["version"] == "1.2.3"
    signal = api["channels"]["exchange.market.spec.signal"]
    assert set(signal["messages"]) == {"Signal", "Void"}
    assert set(signal["parameters"]) == {"exchange", "market", "spec"}


def test_every_reference_leads_somewhere() -> None:
    api = json.loads(json.dumps(document(version="0")))
    found = list(references(api))
    assert len(found) > 20
    for reference in found:
        assert resolved(api, reference)


def test_quality_of_service_and_retention_are_the_contracts() -> None:
    operations = document(version="0")["operations"]
    bindings = {name: operation["bindings"]["mqtt"] for name, operation in operations.items()}
    assert bindings["status"] == {"qos": 1, "retain": True}
    assert bindings["exchange.market.spec.signal"] == {"qos": 1, "retain": False}
    assert bindings["exchange.market.spec.last"] == {"qos": 1, "retain": True}
    assert bindings["exchange.market.spec.live"] == {"qos": 0, "retain": False}
    assert operations["request.command"]["action"] == "receive"
