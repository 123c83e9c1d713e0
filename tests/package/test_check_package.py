"""`make package` finds what is missing from a wheel or a source archive and what does not belong there."""

import tarfile
import zipfile
from pathlib import Path

import check_package
import pytest

RECIPE = "lambda_grpo/recipes/default.yaml"


def wheel(folder: Path, version: str = "0.1.0", without: str = "", besides: str = "") -> Path:
    info = f"lambda_grpo-{version}.dist-info"
    names = check_package.package_files() | {f"{info}/{name}" for name in check_package.DIST_INFO}
    path = folder / "lambda_grpo-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (names - {without}) | ({besides} - {""}):
            archive.writestr(name, f"Version: {version}\n" if name.endswith("/METADATA") else "")
    return path


def test_a_whole_wheel_has_no_faults(tmp_path: Path) -> None:
    assert {RECIPE, "lambda_grpo/py.typed", "lambda_grpo/report/report.html"} <= check_package.package_files()
    assert check_package.wheel_faults(wheel(tmp_path)) == []


def test_faults_of_a_wheel(tmp_path: Path) -> None:
    (missing,) = check_package.wheel_faults(wheel(tmp_path, without=RECIPE))
    assert missing.endswith(f"{RECIPE} is missing")
    (stray,) = check_package.wheel_faults(wheel(tmp_path, besides="tests/test_tree.py"))
    assert stray.endswith("tests/test_tree.py does not belong there")
    for path in ("experiments/cost/run.py", "lambda_grpo/experiments/cost/run.py"):
        (experiment,) = check_package.wheel_faults(wheel(tmp_path, besides=path))
        assert experiment.endswith(f"{path} does not belong there")
    versions = check_package.wheel_faults(wheel(tmp_path, version="0.2.0"))
    assert [fault.split(":")[0] for fault in versions] == ["CITATION.cff", "CHANGELOG.md"]


def test_faults_of_a_source_archive(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "lambda_grpo-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("PKG-INFO", "README.md", "out/model.safetensors"):
            archive.add(tmp_path / "file", f"lambda_grpo-0.1.0/{name}")
    assert check_package.archive_faults(path, ["README.md", "recipes", "LICENSE"]) == [
        f"{path.name}: LICENSE is missing",
        f"{path.name}: out/model.safetensors does not belong there",
    ]


def test_every_extra_has_a_command() -> None:
    import tomllib

    project = tomllib.loads((check_package.ROOT / "pyproject.toml").read_text())["project"]
    assert set(check_package.WORKS) == {"", *project["optional-dependencies"]}


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with status 3"):
        check_package.run(str(tmp_path), ["python", "-c", "raise SystemExit(3)"])
