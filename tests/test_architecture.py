"""The arrows between folders, and which module alone uses what, are held by import-linter's contracts."""

import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_every_contract_is_kept() -> None:
    command = (sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert f"Contracts: {len(contracts)} kept, 0 broken." in done.stdout


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_command_line_alone_loads_nothing_heavy() -> None:
    assert not {"torch", "ccxt", "numba", "numpy", "aiomqtt", "pydantic"} & loaded_by("import daemon.cli")


def test_the_daemon_runs_without_torch() -> None:
    assert "torch" not in loaded_by("import daemon.app")
