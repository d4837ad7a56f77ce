"""What pip makes of the project: the command `selfstudy`, or a line that says what to type."""

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("main.py", "paths.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE",
         "selfstudy", "util", "config")  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def install(tmp_path):
    """Installs a copy of the project into an environment that sees this one's packages."""
    pytest.importorskip("pip")
    try:
        major = int(importlib.metadata.version("setuptools").partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        major = 0
    if major < 77:
        pytest.skip("needs setuptools 77, since nothing is downloaded")
    source, place = tmp_path / "source", tmp_path / "environment"
    source.mkdir()
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    if not python.exists():
        pytest.skip("needs an environment with bin/")
    (inner,) = place.glob("lib/python*/site-packages")
    (inner / "outer.pth").write_text(sysconfig.get_path("purelib"))

    def pip(*what: str) -> Path:
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index",
                   "--no-deps", "--no-build-isolation", *what]  # fmt: skip
        done = subprocess.run(command, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return place / "bin" / "selfstudy"

    return pip


def typed(command: Path, *words: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run([command, *words], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_an_editable_install_gives_the_command_in_any_folder(install, tmp_path):
    (tmp_path / "paths.py").write_text("raise SystemExit('a file of the current folder')")
    command = install("-e", ".")
    flags = ("-e", "x", "-l", "-q", "-g", "simulation/search", "-p", "simulation.rounds = 2")
    code, out, err = typed(command, *flags, cwd=tmp_path)
    assert code == 0, err
    (result,) = (tmp_path / "source" / "exp" / "x").glob("e_*/result.json")
    assert len(result.read_text().splitlines()) == 2


def test_a_plain_install_says_what_to_type(install, tmp_path):
    code, out, err = typed(install("."), "--dry-run", cwd=tmp_path)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.endswith("selfstudy runs from its checkout; there type: pip install -e .\n")
