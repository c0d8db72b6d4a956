"""Check the repository as a package: pins, bounds, targets, and what must never be in it."""

import ast
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
MEGABYTE = 1024 * 1024


def pins() -> dict[str, str]:
    """Return environment.yml's pins, distribution name to exact version."""
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    return {canonicalize_name(name): version for name, version in (p.split("==") for p in packages if "==" in p)}


def tracked() -> list[Path]:
    """Return every file that git tracks, and that is still there."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the repository")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run make as from a shell: without what an outer `make test` left in the environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=60)


def test_environment_pins_are_the_versions_that_this_suite_runs_on():
    wrong = []
    for name, pinned in pins().items():
        running = Version(metadata.version(name)).public  # 2.13.0+cpu is 2.13.0
        if running != pinned:
            wrong.append(f"{name}: environment.yml pins {pinned}, the tests run on {running}")
    assert not wrong, "\n".join([*wrong, "`make test` installs the pins; a tested upgrade belongs in the file."])


def test_environment_gives_a_reason_for_every_line_and_ends_with_the_package():
    lines = (ROOT / "environment.yml").read_text().split("dependencies:\n")[1].rstrip().splitlines()
    assert lines[-1].strip() == "- -e .[notebooks,test]"
    bare = [line for line in lines[:-1] if line.strip() != "- pip:" and not re.search(r"  # \w+", line)]
    assert not bare, f"no reason given: {bare}"


def test_every_direct_dependency_is_pinned_within_its_bounds():
    pinned = pins()
    for requirement in [*BASE, *EXTRAS["notebooks"], *EXTRAS["test"]]:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is in pyproject.toml and not pinned in environment.yml"
        assert requirement.specifier.contains(version), f"{requirement} does not allow the tested {version}"


def test_pyproject_has_lower_bounds_only():
    for requirement in [*BASE, *(r for extra in EXTRAS.values() for r in extra)]:
        operators = sorted(specifier.operator for specifier in requirement.specifier)
        assert operators.count(">=") == 1, f"{requirement}: wants one lower bound"
        assert set(operators) <= {">=", "!="}, f"{requirement}: an upper bound breaks Colab's first cell"
    assert re.fullmatch(r">=3\.\d+", PROJECT["requires-python"])


@pytest.mark.parametrize("version", ["4.57.1", "5.10.0", "5.10.1", "5.10.2", "5.10.3"])
def test_known_bad_transformers_cannot_be_installed(version):
    transformers = next(r for r in BASE if r.name == "transformers")
    assert not transformers.specifier.contains(version)


def test_every_import_of_the_package_is_declared():
    declared = {canonicalize_name(r.name) for r in [*BASE, *EXTRAS["notebooks"], *EXTRAS["cuda"]]}
    in_tests = declared | {canonicalize_name(r.name) for r in EXTRAS["test"]}
    optional = {"math_verify"}  # the paper's own reward uses it, if it is there and asked for
    owners = metadata.packages_distributions()
    unknown = []
    for path in sorted((ROOT / "aqa_lib").rglob("*.py")):
        allowed = in_tests if "tests" in path.parts else declared
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - optional - {"aqa_lib", "__future__"}:
                distributions = {canonicalize_name(owner) for owner in owners.get(name, [name])}
                if name not in sys.stdlib_module_names and not distributions & allowed:
                    unknown.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not unknown, "\n".join([*unknown, "declare it in pyproject.toml, and pin it in environment.yml"])


def test_a_wheel_holds_what_the_package_reads():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    kept = {
        file for name, patterns in told.items() for p in patterns for file in (ROOT / name.replace(".", "/")).glob(p)
    }
    others = {path for path in tracked() if path.is_relative_to(ROOT / "aqa_lib") and path.suffix != ".py"}
    assert others == kept & others, f"no package data: {sorted(others - kept)}"
    assert len(others) >= 5


def test_nothing_that_was_read_is_run_as_code():
    unsafe = re.compile(
        r"(?<![.\w])(?:eval|exec)\(|\b(?:import|from) (?:pickle|dill|joblib|shelve)\b|\bnp\.load\("
        r"|torch\.load\((?!.*weights_only=True)|trust_remote_code\W+True|shell=True"
    )
    code = [path for path in sorted((ROOT / "aqa_lib").rglob("*.py")) if "tests" not in path.parts]
    found = {str(path.relative_to(ROOT)): unsafe.findall(path.read_text()) for path in code}
    assert len(found) > 40 and not any(found.values()), {name: what for name, what in found.items() if what}


def test_make_targets_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:`|^\s*\$? *)make ([a-z]+)", readme, re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named, "README.md gives the two commands"
    assert named <= targets, f"README.md names targets that Makefile lacks: {sorted(named - targets)}"


def test_make_without_a_target_explains_every_target():
    shown = make()
    assert shown.returncode == 0, shown.stderr
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(re.findall(r"^make (\w+) +\w", shown.stdout, re.MULTILINE)) == set(phony)


@pytest.mark.parametrize(("python", "told"), [("old", "is Python 3.9.2"), ("none", "there is no ")])
def test_make_refuses_an_old_or_missing_python_in_one_sentence(tmp_path, python, told):
    for name in ["Makefile", "environment.yml", "pyproject.toml"]:
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\n[ "$1" = -V ]\n')
    old.chmod(0o755)
    refused = make("demo", f"PYTHON={tmp_path / python}", folder=tmp_path)
    assert refused.returncode != 0
    sentence = refused.stderr.splitlines()[0]
    assert "Python 3.11 or newer" in sentence and told in sentence
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_lint_and_the_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK), "git update-index --chmod=+x .ci/run"
    lines = script.read_text().splitlines()
    assert "make lint" in lines and "make test" in lines
    subprocess.run(["bash", "-n", script], check=True)


def test_lab_opens_copies_and_keeps_those_that_were_written_in(tmp_path):
    for name in ("Makefile", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    jupyter = tmp_path / ".venv/bin/jupyter"
    jupyter.parent.mkdir(parents=True)
    jupyter.write_text('#!/bin/sh\necho "$@"\n')
    jupyter.chmod(0o755)
    for stamp in (".python", ".pins", ".torch", ".package", ".test"):  # as after an installation
        (tmp_path / ".venv" / stamp).touch()
    made = make("lab", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "lab workbook/00_tour.ipynb --ServerApp.root_dir=."
    copies, own = tmp_path / "workbook", tmp_path / "notebooks"
    names = {str(path.relative_to(own)) for path in own.rglob("*") if path.suffix in (".ipynb", ".svg", ".png")}
    assert {str(path.relative_to(copies)) for path in copies.rglob("*") if path.is_file()} == names
    mine = copies / "03_grpo_training.ipynb"
    mine.write_text("my answers")
    (copies / "00_tour.ipynb").unlink()
    assert make("lab", folder=tmp_path).returncode == 0
    assert mine.read_text() == "my answers" and (copies / "00_tour.ipynb").is_file()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/workbook/" in ignored


def test_binder_and_codespaces_install_what_is_tested():
    build = ROOT / ".binder" / "postBuild"
    assert os.access(build, os.X_OK)
    subprocess.run(["bash", "-n", build], check=True)
    (pattern,) = re.findall(r"sed -n '(.*)' environment.yml", build.read_text())
    read = ["sed", "-n", pattern, ROOT / "environment.yml"]
    found = subprocess.run(read, check=True, capture_output=True, text=True).stdout.split()
    assert {canonicalize_name(name): version for name, version in (pin.split("==") for pin in found)} == pins()
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = container["postCreateCommand"].removeprefix("make ")
    assert f"{target}:" in (ROOT / "Makefile").read_text()
    python = (ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert container["image"] == f"python:{python}" and f"python={python} " in (ROOT / "environment.yml").read_text()


def test_licence_is_apache():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_no_large_file_without_a_reason_in_the_data_readme():
    reasons = (ROOT / "data" / "README.md").read_text()
    for path in tracked():
        if path.stat().st_size > MEGABYTE:
            inside = path.relative_to(ROOT).as_posix().removeprefix("data/")
            assert f"`{inside}`" in reasons, f"{inside} is over 1 MiB, and data/README.md does not name it"


def test_the_data_readme_has_the_sha256_of_everything_in_data():
    readme = ROOT / "data" / "README.md"
    listed = set(re.findall(r"^[0-9a-f]{64}  \S+$", readme.read_text(), re.MULTILINE))
    actual = {
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(readme.parent).as_posix()}"
        for path in tracked()
        if path.is_relative_to(readme.parent) and path != readme
    }
    wrong = "\n".join(["data/README.md should list:", *sorted(actual - listed, key=lambda row: row[66:])])
    assert actual <= listed, wrong
    assert listed <= actual, f"data/README.md lists what is not there: {sorted(listed - actual)}"


def test_no_tracked_file_names_a_machine_or_a_package_index():
    # Written in pieces, so that this file does not find itself.
    folders = "|".join(["ho" + "me", "Us" + "ers", "ro" + "ot", "wo" + "rk", "op" + "t"])
    paths = re.compile(rb"(?<![\w.~$}/-])/(?:" + folders.encode() + rb")/\w")
    hosts = re.compile(b"|".join([b"py" + rb"pi\.org", b"python" + b"hosted", rb"download\.py" + b"torch"]))
    here = os.fsencode(ROOT) if len(ROOT.parts) > 2 else None
    found = []
    for path in tracked():
        content = path.read_bytes()
        if paths.search(content) or hosts.search(content) or (here and here in content):
            found.append(str(path.relative_to(ROOT)))
    assert not found, f"a machine's path or a package index is named in {found}"


def test_no_test_can_reach_the_network():
    with pytest.raises(OSError, match="must not touch the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)  # an address kept for documentation
