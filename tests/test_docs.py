"""The README and the pages in docs/ name only what exists."""

import ast
import inspect
import re
import shlex
from importlib import import_module

import pytest
import torch
from helpers.pages import PAGES, ROOT
from typer.main import get_command

import sepstop
from sepstop.bench.criteria import COMPARED
from sepstop.cli.main import app
from sepstop.config import SepStopConfig
from sepstop.criteria import CRITERIA
from sepstop.decide.policies import POLICIES
from sepstop.finetune.settings import build_parser
from sepstop.utils.registry import build

COMMANDS = get_command(app).commands
BENCH = COMMANDS["bench"].commands
each_page = pytest.mark.parametrize("page", PAGES)


def code_of(text: str) -> list[str]:
    """Inline code and lines of code blocks; continued lines are one."""
    text = re.sub(r"\\\n\s*", "", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^ {4}(\S.*)$", rest, re.MULTILINE)
    inline = [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", rest)]
    return [*(line for block in blocks for line in block.splitlines()), *indented, *inline]


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def options_of(command) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def options_in(script: str) -> set[str]:
    return {"--help", "--config", *re.findall(r'"(--[\w-]+)', script)}


def existing(name: str):
    """The object that a dotted name, or "module:attribute", stands for."""
    module, _, attribute = name.partition(":")
    if attribute:
        return getattr(import_module(module), attribute)
    found, *parts = sepstop, *name.split(".")[1:]
    for at, part in enumerate(parts, start=2):
        if not hasattr(found, part):
            import_module(".".join(name.split(".")[:at]))
        found = getattr(found, part)
    return found


OF_FINETUNE = {name for one in build_parser()._actions for name in one.option_strings}
OF_SCRIPTS = options_in("".join(path.read_text() for path in ROOT.glob("scripts/*.py")))


@each_page
def test_links_and_their_anchors_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found.read_text()), target


@each_page
def test_files_of_the_repository_exist(page):
    for path in re.findall(r"\b(?:scripts|configs|tests|sepstop|docs)/[\w./-]+\.\w+", PAGES[page]):
        assert (ROOT / path).exists() or path == "configs/bench/SUITE.yaml", path


@each_page
def test_dotted_names_exist(page):
    for name in re.findall(r"(?<!--)\bsepstop\.[A-Za-z_][\w.]*(?::\w+)?", PAGES[page]):
        existing(name.rstrip("."))


@each_page
def test_options_exist(page):
    of_commands = OF_FINETUNE.union(*map(options_of, (*COMMANDS.values(), *BENCH.values())))
    for line in code_of(PAGES[page]):
        called = re.search(r"(?:^|-m )sepstop (bench )?(\w+)(.*)", line)
        script = re.search(r"(?:^|python )(scripts/\w+\.py)(.*)", line)
        if called:
            known = options_of((BENCH if called[1] else COMMANDS)[called[2]])
            if called[2] == "finetune":
                known = OF_FINETUNE
            words = shlex.split(called[3].partition(" -- ")[0])  # the rest is another command's
        elif script:
            known = options_in((ROOT / script[1]).read_text())
            words = shlex.split(script[2])
        else:
            known = of_commands | OF_SCRIPTS
            words = shlex.split(line) if line.startswith("--") else []
        for option in (word.partition("=")[0] for word in words if word.startswith("-")):
            assert option in (OF_FINETUNE if "." in option else known), line


@each_page
def test_arguments_exist(page):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    for code in [*blocks, *code_of(PAGES[page])]:
        try:
            calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        except SyntaxError:  # a command, a formula, a line out of a block
            continue
        for call in calls:
            if isinstance(call.func, ast.Name) and call.func.id in sepstop.__all__:
                parameters = set(inspect.signature(getattr(sepstop, call.func.id)).parameters)
                if "config" in parameters and call.func.id == "select_checkpoint":
                    parameters |= set(SepStopConfig.names())
                assert {keyword.arg for keyword in call.keywords} <= parameters, code


@each_page
def test_criteria_and_policies_exist(page):
    named = re.compile(r'\b(criterion|policy)(?:=|: | )"?([a-z_]+)"?(?![\w."])')
    for line in code_of(PAGES[page]):
        for kind, name in named.findall(line):
            known = CRITERIA if kind == "criterion" else POLICIES
            assert name in {*known, "auto"}, line


def test_the_method_lists_all_criteria():
    section = PAGES["docs/method.md"].split("\n## Criteria\n")[1].split("\n## ")[0]
    recommended, compared = section.split("\nFor comparison")
    assert re.findall(r"^\| `(\w+)` \|", recommended, re.MULTILINE) == list(CRITERIA)
    rows = [row.split(" | ")[:2] for row in compared.splitlines() if row.startswith("| `")]
    listed = {
        name: attribute
        for names, attributes in rows
        for name, attribute in zip(
            re.findall(r"`(\w+)`", names), re.findall(r"`(\w+)`", attributes), strict=True
        )
    }
    assert listed == {name: cls.__name__ for name, cls in COMPARED.items()}


def test_the_method_describes_all_policies():
    section = PAGES["docs/method.md"].split("\n## When to stop\n")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert set(named) == {type(build("policy", name, POLICIES)).__name__ for name in POLICIES}


def test_the_criterion_of_your_own_runs():
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGES["docs/method.md"], re.DOTALL | re.M)
    names = {"pool": ["one", "two", "three", "four"]}
    exec(example, names)
    assert names["callback"].config.criterion(torch.ones(3, 4, 2)).tolist() == [0, 0, 0]
