"""The documentation is true where a machine can tell: rules, settings, links, paths and make targets."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values

from app.server import space
from app.server.budget import RULES, Rule

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
INDEX = ROOT / "docs/README.md"
ALL = [README, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")), *PAGES]

# Names in capitals that are no rows of .env: given by the way of running, by make or by a test, or protocol words.
GIVEN = {
    "APP_HOST", "BUILD_HOST", "COMPOSE_PROJECT_NAME", "DATA_DIR", "DOCKER_HOST", "LOCUST_HOST",
    "POSTGRES_PASSWORD_FILE", "REQUESTS_CA_BUNDLE", "REQUIRE_BROWSER", "REQUIRE_CLUSTER", "REQUIRE_DOCKER",
    "REQUIRE_HAPROXY", "REQUIRE_POSTGRES", "REQUIRE_PROMETHEUS", "TMPDIR", "TRUSTED_PROXIES", "UPDATE_SCREENSHOT",
    "UPSTREAM_HERE", "WAY",
}  # fmt: skip


def words(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(page: Path) -> list[str]:
    """What stands in backquotes in a line, and the lines of code blocks."""
    text = words(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*re.findall(r"`([^`\n]+)`", text), *(line for block in blocks for line in block.splitlines())]


@cache
def targets() -> dict[str, str]:
    """The targets that `make help` lists, with what it says of each."""
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    pairs = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  ")]
    return {pair[0]: pair[1] for pair in pairs}


def constants() -> set[str]:
    """The names of the code's constants."""
    files = [path for folder in ("app", "loadtest") for path in (ROOT / folder).rglob("*.py")]
    return {name for path in files for name in re.findall(r"^([A-Z][A-Z0-9_]+) = ", path.read_text(), flags=re.M)}


def row_of(rule: Rule) -> str:
    """The row of docs/timeouts.md for this rule."""
    each = " for each of `WORKERS`" if rule.each_worker else ""
    times = "" if rule.factor == 1 else f"{rule.factor:g} times "
    plus = f" plus `{rule.plus.upper()}`" if rule.plus else ""
    holds = f"`{rule.left.upper()}`{plus}{each} {rule.relation} {times}`{rule.right.upper()}`"
    return f"| `{rule.name}` | {holds} | {rule.symptom} |"


def test_timeouts_md_has_every_rule_of_the_budget_and_no_other() -> None:
    rows = re.findall(r"^\| `[a-z][a-z-]+` \|.*$", words(ROOT / "docs/timeouts.md"), flags=re.MULTILINE)
    assert rows == [row_of(rule) for rule in RULES]


def test_timeouts_md_explains_every_row_that_a_rule_names() -> None:
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", words(ROOT / "docs/timeouts.md"), flags=re.MULTILINE))
    named = {row.upper() for rule in RULES for row in (rule.left, rule.right)} - {"WORKERS"}
    assert named <= explained, f"not explained: {named - explained}"


def rows_of_space(rule: space.Rule) -> str:
    """The row of docs/limits.md for this rule."""
    terms = "<br>+ ".join(f"{term.formula()}: {term.what}" for term in rule.terms)
    return f"| `{rule.name}` | {terms} | `{rule.limit.upper()}` | {rule.symptom} |"


def test_limits_md_has_every_rule_of_space_and_no_other() -> None:
    rows = re.findall(r"^\| `[a-z][a-z-]+` \|.*$", words(ROOT / "docs/limits.md"), flags=re.MULTILINE)
    assert rows == [rows_of_space(rule) for rule in space.RULES]


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [*re.findall(r"\]\(([^)\s]+)\)", words(page)), *re.findall(r"^\[[^]]+\]: (\S+)", words(page), flags=re.M)]
    relative = [link.partition("#")[0] for link in links if not link.startswith(("https://", "#"))]
    assert [link for link in relative if not (page.parent / link).exists()] == []
    used = set(re.findall(r"\]\[([^]]+)\]", words(page)))
    assert used == set(re.findall(r"^\[([^]]+)\]: ", words(page), flags=re.M))


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    """Paths in backquotes that begin with a file or folder of this repository."""
    top = {path.name for path in ROOT.iterdir()} - {"reports"}  # what is in there, the commands have made
    paths = [word for word in code(page) if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and word.split("/")[0] in top]
    made = {"loadtest/users.py"}  # by make users
    assert [path for path in paths if path not in made and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    mentioned = {target for text in code(page) for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert mentioned <= set(targets()), f"make has no {mentioned - set(targets())}"


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_setting_exists(page: Path) -> None:
    rows = set(dotenv_values(ROOT / ".env"))
    single = {row for row in rows if "_" not in row}
    written = {name for text in code(page) for name in re.findall(r"(?<![\w$-])[A-Z][A-Z0-9_]+(?![\w-])", text)}
    settings = {name for name in written if "_" in name and not name.endswith("_")} | (written & single)
    in_compose = set(re.findall(r"^ +([A-Z_]+): ", (ROOT / "docker-compose.yml").read_text(), flags=re.MULTILINE))
    unknown = settings - rows - GIVEN - constants() - in_compose
    assert not unknown, f"neither in .env nor in the code: {unknown}"


def test_every_page_is_two_clicks_from_the_readme_at_most() -> None:
    assert "](docs/README.md)" in words(README)
    listed = re.findall(r"\]\(([a-z-]+\.md)\)", words(INDEX))
    assert sorted(listed) == [page.name for page in PAGES if page != INDEX]


def test_every_make_target_has_its_row_in_the_words_of_make() -> None:
    rows = re.findall(r"^\| `make ([a-z-]+)` \| (.*) \|$", words(ROOT / "docs/commands.md"), flags=re.MULTILINE)
    assert rows == [(name, said) for name, said in targets().items() if name != "help"]


def test_the_readme_is_one_screen() -> None:
    assert len(words(README).splitlines()) <= 80


def section(page: Path, anchor: str) -> str:
    """The part of a page that a link leads to: all of it without an anchor."""
    if not anchor:
        return words(page)
    found = re.search(rf"^## {anchor}\n(.*?)(?=^## |\Z)", words(page), flags=re.MULTILINE | re.DOTALL)
    assert found, f"{page.name} has no part {anchor}"
    return found[1]


WRITTEN_BY_COMMANDS = ("docs/measurements.md", "docs/zero-loss.md", "docs/settings.md")


def test_every_figure_of_the_readme_stands_where_its_link_leads() -> None:
    checked = 0
    for piece in re.split(r"\n\n|\n(?=[|-] )", words(README)):  # paragraphs, rows and items
        links = re.findall(r"\]\((docs/[^)#]+)#?([^)]*)\)", piece)
        written = "".join(section(ROOT / page, anchor) for page, anchor in links if page in WRITTEN_BY_COMMANDS)
        figures = re.findall(r"\d+(?:[.,]\d+)+|(?<=^\| )\d+", piece) if written else []
        assert [figure for figure in figures if not re.search(rf"(?<!\d){re.escape(figure)}(?!\d)", written)] == [], (
            piece
        )
        checked += len(figures)
    assert checked >= 6, "the README's figures were not recognised"


def test_every_ratio_in_a_comment_of_the_configuration_was_measured() -> None:
    """As "1.6 times the CPU": a median of docs/measurements.md, or one over it."""
    rows = re.findall(r"^\| [^|]+ \|[^|]*\| (\d+\.\d+) \|", words(ROOT / "docs/measurements.md"), flags=re.MULTILINE)
    medians = [float(row) for row in rows]
    files = [*(ROOT / "nginx").rglob("*.*"), ROOT / ".env", *ROOT.glob("docker-compose*.yml")]
    comments = {file.name: re.findall(r"#.*?(\d+\.\d+) times", file.read_text()) for file in files}
    assert sum(map(len, comments.values())) >= 3, "no comment with a ratio was recognised"
    for file, ratios in comments.items():
        for ratio in ratios:
            digits = len(ratio.partition(".")[2])
            measured = {round(each, digits) for median in medians for each in (median, 1 / median)}
            assert float(ratio) in measured, f"{file}: {ratio} times was measured by no command"


def test_every_action_of_a_workflow_is_pinned_by_its_hash() -> None:
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    used = [line for file in files for line in re.findall(r"uses: (.*)$", file.read_text(), flags=re.MULTILINE)]
    assert len(used) >= len(files)
    assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", line)] == []


def test_every_image_that_the_stack_builds_is_published_and_its_base_kept_up_to_date() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    built = {Path(each["build"]["dockerfile"]).parent.name for each in services.values() if "build" in each}
    publish = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())
    assert set(publish["jobs"]["images"]["strategy"]["matrix"]["part"]) == built
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    (docker,) = [each for each in updates if each["package-ecosystem"] == "docker"]
    files = subprocess.run(["git", "ls-files", "*Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(docker["directories"]) == {f"/{Path(file).parent}" for file in files.stdout.splitlines()}


def test_pages_that_the_code_refers_to_exist() -> None:
    listed = subprocess.run(
        ["git", "grep", "-hoE", r"docs/[a-z-]+\.md", "--", ".", ":!docs", ":!tests/docs"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode > 1:
        pytest.skip("not a git working copy")
    assert [name for name in sorted(set(listed.stdout.split())) if not (ROOT / name).exists()] == []
