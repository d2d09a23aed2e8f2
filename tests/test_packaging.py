"""What is installed: our packages and their data, nothing else, under names nobody else uses."""

import importlib.metadata
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {"config", "daemon", "feeds", "inference", "training"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_nobody_else_installs_a_package_of_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: owners.get(name, ["lstmd"]) for name in PACKAGES} == {name: ["lstmd"] for name in PACKAGES}


def test_no_module_is_named_like_one_of_the_standard_library_or_a_sibling() -> None:
    for package in PACKAGES:
        assert package not in sys.stdlib_module_names
        for module in (ROOT / package).rglob("*.py"):
            if module.stem != "__init__":
                assert module.stem not in sys.stdlib_module_names | PACKAGES, module


def test_the_packages_own_files_are_nearly_empty() -> None:
    for package in PACKAGES:
        assert len((ROOT / package / "__init__.py").read_text().splitlines()) <= 5


def test_every_level_of_the_tests_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_command_is_installed() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="lstmd")
    assert entry.value == "daemon.cli:main"
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "check-config" in done.stdout


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)}
    project = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    for text in texts:
        requirement = packaging.Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), text
    assert not any("/" in line or "@" in line for line in lines)


def test_the_wheel_holds_our_packages_and_their_data_only(tmp_path: pathlib.Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed here")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(built).namelist()
    assert {name.split("/")[0] for name in names} == PACKAGES | {f"lstmd-{PROJECT['project']['version']}.dist-info"}
    needed = {
        "config/lstmd.toml",
        "training/recipes/default.toml",
        "inference/artifacts/default/manifest.json",
        "inference/artifacts/default/model.safetensors",
    }
    assert needed <= set(names)
    assert not [name for name in names if "__pycache__" in name]
