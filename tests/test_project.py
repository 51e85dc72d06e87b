"""What holds the project together beside its code: versions, pins, documents and the commands they promise."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import tunesmith
from tunesmith.cli.main import COMMANDS
from tunesmith.recipe import is_recipe_file, load_recipe, markdown

PROJECT = Path(__file__).resolve().parent.parent
EMBEDDED = "src/tunesmith/models/embedded/"
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "benchmarks/README.md",
    *sorted(p.relative_to(PROJECT).as_posix() for p in PROJECT.glob("docs/**/*.md")),
)
LARGEST_FILE = 5_000_000
_SKIPPED_FOLDERS = {"__pycache__", "runs", "build", "dist"}


def project_files() -> list[Path]:
    """What a clone holds, or will hold: tracked files, and new ones that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        files = [PROJECT / name for name in listing.stdout.split("\0") if name]
    else:  # an archive without its history
        files = [
            path
            for path in PROJECT.rglob("*")
            if not any(
                part in _SKIPPED_FOLDERS or (part.startswith(".") and part != ".ci") or part.endswith(".egg-info")
                for part in path.relative_to(PROJECT).parts[:-1]
            )
        ]
    return [path for path in files if path.is_file()]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        loaded: dict[str, Any] = tomllib.load(file)["project"]
    return loaded


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    """Canonical name to version, from constraints.txt."""
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in wanted:
        assert [s.operator for s in requirement.specifier] == ["=="], f"{requirement} is not one exact version"
    names = [canonicalize_name(requirement.name) for requirement in wanted]
    assert len(set(names)) == len(names), "a package is pinned twice"
    versions = [next(iter(requirement.specifier)).version for requirement in wanted]
    return dict(zip(names, map(Version, versions), strict=True))


def _requirements(project: dict[str, Any]) -> list[tuple[str, Requirement]]:
    groups = {"core": project["dependencies"], **project["optional-dependencies"]}
    return [(group, Requirement(text)) for group, texts in groups.items() for text in texts]


def test_every_dependency_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, Version]) -> None:
    requirements = _requirements(project)
    assert len(requirements) > 20
    for group, requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} ({group}) is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is outside {requirement} ({group})"


def test_pins_fit_every_machine(pins: dict[str, Version]) -> None:
    """No build of a package (torch's +cpu), no address and no file: a plain index must be enough."""
    assert not [name for name, version in pins.items() if version.local]
    text = (PROJECT / "constraints.txt").read_text()
    assert not re.search(r"^[^#]*(@|://|--)", text, re.MULTILINE)


def test_the_core_is_small(project: dict[str, Any]) -> None:
    """What only tests, benchmarks or tables need must not come with the package."""
    core = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert not core & {"pandas", "trl", "datasets", "accelerate", "pytest", "playwright", "statsmodels", "mypy", "ruff"}


def test_one_version_everywhere(project: dict[str, Any]) -> None:
    released = re.search(r"^## \[?(\d+\.\d+\.\d+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released, "the changelog names no version"
    assert tunesmith.__version__ == project["version"] == released.group(1)


def test_the_python_versions_agree(project: dict[str, Any]) -> None:
    assert project["requires-python"] == ">=3.11"
    for name in ("README.md", "CONTRIBUTING.md"):
        assert "3.11" in (PROJECT / name).read_text(), name
    assert "(3, 11)" in (PROJECT / "Makefile").read_text()


def test_the_package_says_that_it_is_typed() -> None:
    assert (PROJECT / "src/tunesmith/py.typed").is_file()


def test_the_licence_is_the_whole_apache_licence(project: dict[str, Any]) -> None:
    text = (PROJECT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_page_of_settings_is_what_the_recipe_says() -> None:
    assert (PROJECT / "docs/recipe.md").read_text() == markdown(), "run `make docs`"


def test_no_large_file_but_the_embedded_base() -> None:
    sizes = {path.relative_to(PROJECT).as_posix(): path.stat().st_size for path in project_files()}
    assert len(sizes) > 100
    large = {name: size for name, size in sizes.items() if size > LARGEST_FILE and not name.startswith(EMBEDDED)}
    assert not large


def test_no_path_of_somebodys_machine() -> None:
    """A home or working folder in a file works on one machine only, and tells about it."""
    folders = "|".join(("root", "work", "home/[a-z]", "Users/[A-Za-z]", "mnt/"))
    pattern = re.compile(rf"(?<![\w.}})/-])/({folders})\b")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
        found += [f"{path.relative_to(PROJECT)}:{number}: {line[:80]}" for number, line in lines]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_documents_exist(name: str) -> None:
    text = (PROJECT / name).read_text()
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= targets
    # `tunesmith recipe docs` is a command; `tunesmith.recipe` and `from tunesmith import run` are not.
    assert set(re.findall(r"(?<![\w./-])(?<!from )tunesmith ([a-z]+)\b", code)) <= set(COMMANDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    page = PROJECT / name
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"", page.read_text()):
        link = target[0] or target[1]
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        goal = (page.parent / file) if file else page
        if not goal.exists() or (anchor and anchor not in _anchors(goal)):
            broken.append(link)
    assert not broken


def _anchors(page: Path) -> set[str]:
    """The anchors that headings of a Markdown page get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_shows_the_two_commands_and_a_python_example_that_compiles() -> None:
    text = (PROJECT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")
        for names in re.findall(r"^from tunesmith import (.+)$", example, re.MULTILINE):
            for imported in names.split(", "):
                assert imported in tunesmith.__all__


def test_the_demo_is_a_recipe_that_can_be_read() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    demo = re.search(r"^DEMO \?= (\S+)$", makefile, re.MULTILINE)
    assert demo
    recipe = load_recipe(PROJECT / demo.group(1))
    assert recipe.base.model == "embedded:base"
    assert Path(recipe.data.train).is_file()
    assert recipe.goal.when_reached == "train"  # it shows the whole way, although a rule reaches the target


def test_every_example_recipe_can_be_read() -> None:
    recipes = [path for path in sorted((PROJECT / "examples").glob("*/recipe.yaml")) if is_recipe_file(path)]
    assert len(recipes) >= 2
    for path in recipes:
        assert Path(load_recipe(path).data.train).is_file(), path


def test_continuous_integration_runs_the_tests() -> None:
    script = PROJECT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make .*\btest\b", script.read_text(), re.MULTILINE)
    subprocess.run(["bash", "-n", str(script)], check=True)
