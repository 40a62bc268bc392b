"""Draws the figure of docs/explanation/contrastive-decoding.md: `python -m tools.docs_figures`.

It shows one position of a text under SmolLM2-135M-Instruct, with attention dropout as BAD. The other pictures of the
explanation are SVG files written by hand.
"""

import math
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes

from cdgen import ContrastiveLM, SamplingParams
from cdgen.models.smollm2 import smollm2_folder
from cdgen.viewer.explanation import Prediction

PATH = Path(__file__).resolve().parents[1] / "docs" / "images" / "one-token.svg"
PROMPT = "The doctor looked at the x-ray and said that the bone was"
ALPHA, DROPOUT, SHOWN = 0.1, 0.3, 15
GOOD, BAD, DRAWN, OUTSIDE = "#2f6f94", "#d9822b", "#3d8b57", "#b9c3ca"


def predictions() -> tuple[list[str], list[Prediction]]:
    """Return GOOD's most probable tokens after the prompt, and what is predicted for each of them."""
    lm = ContrastiveLM(str(smollm2_folder()), dropout=DROPOUT)
    assert lm.tokenizer is not None
    ids = lm.tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        best = lm.pair.good.module(torch.tensor([ids])).logits[0, -1].topk(SHOWN).indices.tolist()
    params = SamplingParams(alpha=ALPHA)
    found = [lm.explain([*ids, token], params).tokens[-1].prediction for token in best]
    return [lm.tokenizer.decode([token]).strip() for token in best], [one for one in found if one is not None]


def bars(axes: Axes, title: str, values: list[float], colours: list[str]) -> None:
    """Draw one distribution as horizontal bars, with the values beside them in per cent."""
    axes.barh(range(len(values)), values, color=colours, height=0.72)
    for row, value in enumerate(values):
        label = "0" if value == 0 else f"{value:.{1 if value >= 0.01 else 2}%}"
        axes.text(value, row, f" {label}", va="center", fontsize=8.5, color="#333")
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlim(0, 1.3 * max(values))
    axes.set_xticks([])
    axes.tick_params(left=False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def main() -> None:
    """Write the figure."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "cdgen"  # the same file each time
    tokens, found = predictions()
    good, bad = [math.exp(one.good) for one in found], [math.exp(one.bad or 0.0) for one in found]
    drawn = [math.exp(one.logprob) for one in found]
    threshold = ALPHA * max(good)
    kept = [value >= threshold for value in good]
    figure, axes = pyplot.subplots(1, 3, figsize=(9.6, 4.6), sharey=True, layout="constrained")
    bars(axes[0], "GOOD: p(token)", good, [GOOD if keep else OUTSIDE for keep in kept])
    axes[0].axvline(threshold, color="#a33", linewidth=1, linestyle="--")
    axes[0].text(threshold, len(good) - 0.2, "  alpha × largest p", color="#a33", fontsize=8.5, va="center")
    bars(axes[1], "BAD: p(token)", bad, [BAD if keep else OUTSIDE for keep in kept])
    bars(axes[2], "sampled from", drawn, [DRAWN if keep else OUTSIDE for keep in kept])
    axes[0].set_yticks(range(len(good)), tokens, fontsize=10)
    axes[0].invert_yaxis()
    figure.suptitle(f"“{PROMPT} …” · {found[0].candidates} candidates", fontsize=11)
    figure.savefig(PATH, metadata={"Date": None})


if __name__ == "__main__":
    main()
