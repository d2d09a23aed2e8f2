"""What the documents say is so: every key, topic, field and figure is there, and nothing that is not."""

import pathlib
import re

import msgspec
import pytest
from pydantic import BaseModel

from config.load import load
from config.schema import Config, Feed
from daemon.metrics import Metrics
from daemon.topics import PAYLOADS, Context, Signal, Void
from feeds.session import mermaid

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TOPICS = (ROOT / "docs/topics.md").read_text()
SECTIONS = {name: field.annotation for name, field in Config.model_fields.items() if name != "feeds"}


def section(text: str, heading: str) -> str:
    """Return what stands under a second-level heading."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = (part for part in parts if part.partition("\n")[0].strip() == heading)
    return found


def documented_keys(heading: str) -> set[str]:
    text = section((ROOT / "docs/configuration.md").read_text(), heading)
    return set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))


def test_every_configuration_key_is_documented() -> None:
    assert documented_keys("`[[feeds]]`") == set(Feed.model_fields)
    for name, model in SECTIONS.items():
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        assert documented_keys(f"`[{name}]`") == set(model.model_fields), name


def test_documented_defaults_are_the_schemas() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for name, model in [*SECTIONS.items(), ("feeds", Feed)]:
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key, field in model.model_fields.items():
            if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
                row = next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
                assert str(field.default) in row.split("|")[2], f"{name}.{key}: {row}"


@pytest.mark.parametrize("topic", PAYLOADS)
def test_every_topic_is_documented_with_its_fields(topic: str) -> None:
    heading = "`request/{command}` and `response/{command}`" if "command" in topic else f"`{topic}`"
    text = section(TOPICS, heading)
    kinds: list[type[msgspec.Struct]] = [PAYLOADS[topic]]
    if topic.endswith("/signal"):
        kinds += [Void, Context]
    if topic.endswith("/last"):
        return  # the signal's
    for kind in kinds:
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in text, f"{topic}: {field.name}"


def test_the_readme_names_every_topic_and_explains_every_field_of_a_signal() -> None:
    for topic in PAYLOADS:
        assert f"`{topic}`" in README
    fields = {field.name for field in msgspec.structs.fields(Signal)}
    table = section(README, "A signal, field by field")
    assert fields == {
        name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)
    }


def test_the_readmes_signal_is_a_signal() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", section(README, "A signal, field by field"), re.DOTALL)
    signal = msgspec.json.decode(example.encode(), type=Signal, strict=True)
    assert abs(signal.p_short + signal.p_flat + signal.p_long - 1) < 1e-9
    assert set(msgspec.json.decode(example)) == {field.name for field in msgspec.structs.fields(Signal)}


def test_every_figure_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE)
    assert sorted(rows) == Metrics().names()


@pytest.mark.parametrize("path", sorted((ROOT / "config/examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LSTMD_MODEL__ARTIFACT", raising=False)
    assert load(path).feeds


def test_the_readmes_configuration_loads(tmp_path: pathlib.Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "lstmd.toml").write_text(text)
    assert load(tmp_path / "lstmd.toml").feeds[0].candles == ("1m", "5m")


def test_the_session_diagram_is_the_tables() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in (ROOT / "docs/architecture.md").read_text()


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_architecture_names_every_module_of_the_runtime() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for folder in ("feeds", "inference", "daemon"):
        for module in (ROOT / folder).glob("[a-z]*.py"):
            assert f"`{module.stem}`" in text or module.stem == "errors", f"{folder}.{module.stem}"
