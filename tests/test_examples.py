"""Run the examples as a newcomer would, and compare them with one another and with the methods' definitions."""

import ast
import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPT = "Once upon a time"
TWO_MODELS = ["own_decode_loop.py", "compare_methods.py", "logits_processor.py", "cuda_graph.py"]
IMPORTS = {  # beside the standard library
    "torch_only.py": {"torch", "cdgen_kernels"},
    "logits_processor.py": {"torch", "transformers", "cdgen_kernels"},
    "cuda_graph.py": {"torch", "transformers", "cdgen_kernels"},
    "two_prompts.py": {"torch", "transformers", "cdgen_kernels"},
}

# In newer versions of transformers, the argument `past_key_values` has another name, and the old one still works.
pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")


def run(name: str, *arguments: object) -> dict[str, Any]:
    """Run an example as a program; return its names."""
    sys.argv = [name, *map(str, arguments)]
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the program's arguments after a test."""
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize("name", TWO_MODELS)
def test_an_example_prints_a_continuation(
    name: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(name, folders["good"], folders["bad"], PROMPT)
    printed = capsys.readouterr().out
    assert PROMPT in printed and len(printed) > len(PROMPT) + 20


def test_a_processor_and_a_static_cache_draw_the_same_tokens(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The noise of both depends on the same seed, rows and positions."""
    texts = []
    for name in ("logits_processor.py", "cuda_graph.py"):
        run(name, folders["good"], folders["bad"], PROMPT)
        texts.append(capsys.readouterr().out)
    assert texts[1] == f"no CUDA device: the steps run without a CUDA graph\n{texts[0]}"


def test_plain_torch_needs_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat on the log. " * 9, encoding="utf-8")
    run("torch_only.py", text)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"contrast_strength {x}" for x in (0, 0, 1, 1)]
    assert all(len(line) > 200 and line.count("sat on the") > 2 for line in lines)


@pytest.mark.parametrize(("method", "strength"), [("guidance", 1.5), ("context_aware", 0.5)])
def test_two_prompts_follow_the_formula(
    method: str, strength: float, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """At temperature 0, each token has the best score of the formula, computed without cache and padding."""
    example = run("two_prompts.py", folders["good"], "A story about a cat.", PROMPT)
    assert capsys.readouterr().out.count(PROMPT) == 2
    model = AutoModelForCausalLM.from_pretrained(folders["good"]).eval()
    context, text = [0, 40, 50, 60, 70, 80], [0, 70, 80]
    pad = len(context) - len(text)
    ids = torch.tensor([context, [1] * pad + text])
    mask = torch.tensor([[1] * len(context), [0] * pad + [1] * len(text)])
    sampling = example[method](strength)
    tokens = example["continue_text"](model, ids, mask, sampling._replace(temperature=torch.zeros(1)))
    share = 1.5 if method == "guidance" else 1 + strength
    for token in tokens:
        with_context, without = (
            model(torch.tensor([one])).logits[0, -1].log_softmax(-1).detach() for one in (context, text)
        )
        score = share * with_context - (share - 1) * without
        if method == "guidance":
            score[with_context < with_context.max() + torch.tensor(0.05).log()] = -torch.inf
        assert token == int(score.argmax())
        context, text = [*context, token], [*text, token]


class RecordedGraph:
    """Stands in for torch.cuda.CUDAGraph: a capture keeps what the step would do, and a replay does it."""

    def __init__(self) -> None:
        self.replays = 0
        self.step: Any = None

    def replay(self) -> None:
        self.replays += 1
        self.step()


def test_a_cuda_graph_replaces_all_steps_but_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture records a step without running it, so each step must have run or been replayed exactly once."""
    graph, newest = RecordedGraph(), torch.zeros(2, 1, dtype=torch.int64)
    capturing = False

    @contextlib.contextmanager
    def capture(captured: RecordedGraph) -> Iterator[None]:
        nonlocal capturing
        capturing = True
        yield
        capturing = False

    def advance() -> None:
        newest.add_(1)

    def step() -> torch.Tensor:
        if capturing:
            graph.step = advance
        else:
            advance()
        return newest

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    stand_ins = {
        "is_available": lambda: True,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": lambda: graph,
        "graph": capture,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    run_steps = runpy.run_path(str(EXAMPLES / "cuda_graph.py"))["run_steps"]
    assert run_steps(step, 10).tolist() == [list(range(1, 11))] * 2
    assert graph.replays == 7


@pytest.mark.parametrize("name", IMPORTS)
def test_an_example_needs_only_what_it_says(name: str) -> None:
    nodes = list(ast.walk(ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {one.split(".")[0] for one in found} - set(sys.stdlib_module_names) == IMPORTS[name]


def test_every_example_is_listed_and_tested() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    assert programs == {*TWO_MODELS, *IMPORTS}
    assert all(
        f"({path.name})" in readme for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__")
    )
