"""A method written by following plugins/README.md to the letter works, in a package of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedlab.testing import CHECKS, FAMILIES, save_tiny_backbone
from helpers.paths import ROOT
from helpers.runs import trained_weights

README = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")


def files_of(readme: str) -> dict[str, str]:
    """What the README says to write, by file name."""
    return dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL))


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Runs a command of this Python outside the repository; its output, or a failure that shows it."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's files, in a folder of their own."""
    folder = tmp_path_factory.mktemp("layer_norm_tuning")
    for name, content in files_of(README).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def installed(package: Path) -> dict[str, str]:
    """The environment in which the package is installed: by pip, offline, without touching this Python's packages."""
    target = package / "installed"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    run(["pip", "install", *options, "--target", str(target), "."], package)
    return {"PYTHONPATH": str(target)}


def test_the_readme_has_every_file_and_the_commands() -> None:
    assert set(files_of(README)) == {
        "pyproject.toml",
        "layer_norm_tuning.py",
        "test_layer_norm_tuning.py",
        "fit.yaml",
    }
    for command in ("pip install -e .", "embedlab methods", "pytest", "embedlab fit --config fit.yaml"):
        assert re.search(rf"^{re.escape(command)}", README, re.MULTILINE)


def test_the_readme_explains_every_check() -> None:
    assert re.findall(r"^\| `(check_\w+)`", README, re.MULTILINE) == [check.__name__ for check in CHECKS]


def test_the_method_passes_the_contract(package: Path, installed: dict[str, str]) -> None:
    printed = run(["pytest", "-p", "no:cacheprovider", "test_layer_norm_tuning.py"], package, **installed)
    assert f"{len(CHECKS) * len(FAMILIES) + 1} passed" in printed


def test_the_method_is_listed_and_trains_by_the_readme_s_commands(
    package: Path, installed: dict[str, str], tmp_path: Path
) -> None:
    # The one thing the README leaves to the reader's machine: a backbone, here a tiny one instead of ladder:r0.
    backbone = save_tiny_backbone(tmp_path / "backbone")
    fit = ["fit", "--config", "fit.yaml", "--model.method", "LayerNormTuning"]
    fit += ["--model.backbone.path", str(backbone), "--output", str(tmp_path / "run"), "--data.max_length", "32"]
    fit += ["--trainer.max_steps", "3"]
    (package / "commands.py").write_text(
        f"from embedlab.__main__ import main\nfor command in (['methods'], {fit}): main(command)"
    )
    printed = run(["commands"], package, COLUMNS="200", **installed)
    assert "LayerNormTuning" in printed and "embedlab-layer-norm-tuning 0.1.0" in printed
    assert "biases: bool = True  Whether to train the biases of the norms, too" in printed
    weights = trained_weights(tmp_path / "run")
    assert weights and all("norm" in name for name in weights)
