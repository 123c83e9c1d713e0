"""Is what `python -m build` made fit to be published? `python tests/support/check_package.py dist [EXTRA…]`

The wheel holds the package, whole, and nothing else; the source archive what git tracks; and the wheel installs into an
empty environment and works there, without extras and with each EXTRA named, in an environment of its own. With TRL
a script for TRL runs there, as it is and with two names swapped.
"""

import argparse
import email
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "lambda_grpo"
DIST_INFO = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
MOST_BYTES = 2 * 2**20

ROLLOUTS = """\
{"group": "a", "prompt": "7+2+13=", "completion": "7+2 = 9, so 22.", "reward": 1}
{"group": "a", "prompt": "7+2+13=", "completion": "7+2 = 9, so 21.", "reward": 0}
"""
SWAP = ["python", str(Path(__file__).with_name("two_name_swap.py"))]
# What each extra is for, in commands that fail without it. "" is the light install, where torch must be absent.
WORKS = {
    "": [["lambda-grpo", "report", "rollouts.jsonl"]],
    "train": [["lambda-grpo", "train", "--dry_run"], SWAP],
    "tasks": [
        ["python", "-c", "from lambda_grpo.tasks import get_task; get_task('reasoning-gym:chain_sum')"]
    ],
    "verl": [["python", "-m", "lambda_grpo.engines.verl.check"]],
    "tinker": [["python", "-c", "import lambda_grpo.engines.tinker"]],
    "gguf": [["python", "-c", "import gguf"]],
    "docs": [["python", "-m", "mkdocs", "--version"]],
    "dev": [["python", "-m", "pytest", "--version"], SWAP],
}
# It wants another transformers than constraints.txt has. torch is pinned all the same.
UNCONSTRAINED = {"tinker"}


def wheel_faults(wheel: Path) -> list[str]:
    """What is missing from the wheel, and what does not belong there."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    faults = differences(wheel.name, names, {f"{info}/{name}" for name in DIST_INFO} | package_files())
    if wheel.stat().st_size > MOST_BYTES:
        faults.append(f"{wheel.name}: {wheel.stat().st_size} bytes, more than {MOST_BYTES}")
    return faults + version_faults(metadata["Version"])


def package_files() -> set[str]:
    """What the wheel should hold: the package."""
    return {
        f"lambda_grpo/{path.relative_to(SOURCES).as_posix()}"
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def version_faults(version: str) -> list[str]:
    """Files that name another version than the wheel's."""
    named = {
        "CITATION.cff": re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE),
        "CHANGELOG.md": re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE),
    }
    return [
        f"{name}: version {found[1] if found else None}, but the wheel's is {version}"
        for name, found in named.items()
        if not found or found[1] != version
    ]


def archive_faults(archive: Path, tracked: Iterable[str]) -> list[str]:
    """What git tracks and the source archive lacks, and the other way round. (`recipes` is a link, left out.)"""
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    return differences(archive.name, names - {"PKG-INFO"}, set(tracked) - {"recipes"})


def differences(where: str, found: set[str], expected: set[str]) -> list[str]:
    missing = [f"{where}: {name} is missing" for name in sorted(expected - found)]
    return missing + [f"{where}: {name} does not belong there" for name in sorted(found - expected)]


def tracked_files() -> list[str] | None:
    """None where this is no git checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.stdout.splitlines() if listed.returncode == 0 else None


def install(wheel: Path, extra: str) -> None:
    """Into an empty environment; then does it do what it is for?"""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        programs = Path(folder) / "venv" / "bin"
        pins = ROOT / ("constraints-verl.txt" if extra == "verl" else "constraints.txt")
        torch = re.search(r"^torch==.+$", pins.read_text(), re.MULTILINE)
        pinned = [torch[0]] if extra in UNCONSTRAINED else ["--constraint", str(pins)]
        wanted = f"{wheel.resolve()}[{extra}]" if extra else str(wheel.resolve())
        run(folder, [str(programs / "python"), "-m", "pip", "install", "--quiet", *pinned, wanted])
        run(folder, [str(programs / "python"), "-m", "pip", "check"])
        (Path(folder) / "rollouts.jsonl").write_text(ROLLOUTS)
        for program, *arguments in WORKS[extra]:
            run(folder, [str(programs / program), *arguments])
        if not extra and run(folder, [str(programs / "python"), "-c", "import torch"], may_fail=True) == 0:
            sys.exit("the light install brought torch with it")
    name = f"lambda-grpo[{extra}]" if extra else "lambda-grpo"
    print(f"{name}: installed and working, {time.perf_counter() - started:.0f} s")


def run(folder: str, command: list[str], may_fail: bool = False) -> int:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("extras", nargs="*", help=f"install these, each by itself: {', '.join(WORKS)[2:]}")
    args = parser.parse_args()
    if unknown := set(args.extras) - set(WORKS):
        parser.error(f"no such extra: {', '.join(sorted(unknown))}")
    (wheel,), (archive,) = args.folder.glob("*.whl"), args.folder.glob("*.tar.gz")
    tracked = tracked_files()
    faults = wheel_faults(wheel) + (archive_faults(archive, tracked) if tracked else [])
    if faults:
        sys.exit("\n".join(faults))
    print(f"{wheel.name}, {archive.name}: whole{'' if tracked else '; no git, so sources not compared'}")
    for extra in ["", *args.extras]:
        install(wheel, extra)


if __name__ == "__main__":
    main()
