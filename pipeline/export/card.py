"""The model card of an exported folder: YAML front matter and what a person should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from archipelago.pipeline.records.evaluation import TITLES

SHOWN_CLASSES = 30
SETTINGS = tuple((name, TITLES[name]) for name in ("mtil_given", "mtil_identified", "xtail"))
HOW = """\
```python
from archipelago.pipeline.learned import LearnedModel

model = LearnedModel.open("{place}"{backbone})
model.answer(["image.png"])                                 # all learned classes, domain recognised
model.answer(["image.png"], task={task!r})                  # the domain is known
model.answer(["image.png"], candidates=["a dog", "a cat"])  # any names
```
"""
INSIDE = """\
`groups/` holds one folder a domain: trained weights (`group.safetensors`), statistics and class
features (`identity.safetensors`), and `probe.safetensors`, **a few training images of each domain**
with the answers they got, which show that the model still answers as it did. Do not publish the
folder where these images must not be seen. Files are checked against their sha256 when read.
"""
ONNX = """\
`onnx/` holds the function of the domain {task!r} alone: `image`, float32 (B, 3, {size}, {size}),
RGB with values from 0 to 1, to `probabilities` (B, {classes}), in the order of `classes` in the
file's metadata. It does not tell domains apart.
"""


def model_card(
    config: Mapping[str, Any], report: Mapping[str, Any], onnx: str | None = None
) -> str:
    """The text of README.md.

    Args:
        config: that of the folder.
        report: report.json of the run; empty where there is none.
        onnx: the domain whose function is there as ONNX.
    """
    figures = _figures(config, report)
    domains, backbone = config["domains"], config["backbone"]
    names = [domain["name"] for domain in domains]
    parts = [
        f"---\n{yaml.safe_dump(_front(config, figures), sort_keys=False, allow_unicode=True)}---\n",
        f"# archipelago: {_plain(', '.join(names))}\n",
        f"A frozen CLIP that learned {len(domains)} {_many('domain', domains)}, one after another,"
        f" by the method `{config['method']}`. It recognises which of them an image is from"
        " and answers by what was learned of it; other images are answered by frozen CLIP.\n",
        "## Load it\n",
        "```sh\npip install archipelago-cl\n```\n",
        HOW.format(
            place="path/to/this/folder",
            backbone=', backbone="local-dir:/path/to/clip"' if _is_local(backbone) else "",
            task=names[0],
        ),
        _backbone(config),
        "## Figures\n",
        _table(config, figures, report),
        "## Data\n",
        _data(domains),
        "## What is in it\n",
        f"Manifest {config['manifest']} of its run, sha256 `{config['manifest_sha256']}`;"
        f" {config['parameters']:,} trained parameters beside the backbone's"
        f" {backbone.get('parameters', 0):,}, which are not in this folder.\n",
        INSIDE,
    ]
    if onnx is not None:
        classes = next(len(d["classes"]) for d in domains if d["name"] == onnx)
        parts.append(ONNX.format(task=onnx, size=backbone.get("image_size", "S"), classes=classes))
    return "\n".join(parts)


def _is_local(backbone: Mapping[str, Any]) -> bool:
    return str(backbone["name"]).startswith("local-dir:")


def _backbone(config: Mapping[str, Any]) -> str:
    backbone, name = config["backbone"], str(config["backbone"]["name"])
    needed = f"It needs the backbone with the weights sha256 `{backbone['sha256']}`"
    if _is_local(backbone):
        return (
            f"{needed}, from a local folder: give its place, as above. It is not in this folder.\n"
        )
    if name == "clip-tiny":
        return f"{needed}: `clip-tiny`, which is part of the package.\n"
    tag = f" ({config['pretrained']})" if config.get("pretrained") else ""
    return f"{needed}: `{name}`{tag}, which is fetched by its name. Other weights are refused.\n"


def _figures(config: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Percent by domain and setting, after the last stage that was measured."""
    found: dict[str, dict[str, float]] = {domain["name"]: {} for domain in config["domains"]}
    tasks: Sequence[str] = report.get("tasks") or ()
    for setting, _ in SETTINGS:
        matrix = ((report.get("settings") or {}).get(setting) or {}).get("matrix") or []
        measured = [row for row in matrix if any(value is not None for value in row)]
        for task, value in zip(tasks, measured[-1] if measured else (), strict=False):
            if task in found and value is not None:
                found[task][setting] = float(value)
    for task, value in zip(tasks, report.get("zero_shot") or (), strict=False):
        if task in found and value is not None:
            found[task]["zero_shot"] = float(value)
    return found


def _front(config: Mapping[str, Any], figures: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    domains, backbone = config["domains"], config["backbone"]
    name = str(backbone["name"])
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"type": task, "name": task},
            "metrics": [
                {"type": "accuracy", "name": f"accuracy, {words}", "value": row[setting]}
                for setting, words in SETTINGS
                if setting in row
            ],
        }
        for task, row in figures.items()
        if any(setting in row for setting, _ in SETTINGS)
    ]
    front: dict[str, Any] = {
        "library_name": "archipelago",
        "pipeline_tag": "image-classification",
        "tags": ["archipelago", "clip", "continual-learning"],
        "archipelago": {
            "method": config["method"],
            "manifest": config["manifest"],
            "backbone": {"name": name, "sha256": backbone["sha256"]},
            "domains": [
                {
                    "name": domain["name"],
                    "classes": len(domain["classes"]),
                    "digests": dict(domain["digests"]),
                }
                for domain in domains
            ],
        },
    }
    if name.startswith("hf-hub:"):
        front["base_model"] = name.removeprefix("hf-hub:")
    if results:
        front["model-index"] = [{"name": "archipelago", "results": results}]
    return front


def _table(
    config: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, float]],
    report: Mapping[str, Any],
) -> str:
    if not any(figures.values()):
        return "The run has measured nothing.\n"
    columns = [("zero_shot", "zero-shot"), *SETTINGS]
    columns = [(k, words) for k, words in columns if any(k in row for row in figures.values())]
    lines = [
        "Accuracy on the test split of each domain, percent, after the last stage of its run"
        f" ({report.get('setting', 'task identified')}).",
        "",
        f"| domain | {' | '.join(words for _, words in columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for task, row in figures.items():
        cells = [f"{row[key]:.1f}" if key in row else "" for key, _ in columns]
        lines.append(f"| {_cell(task)} | {' | '.join(cells)} |")
    others = len(set(report.get("tasks") or ()) - set(figures))
    if others:
        lines += [
            "",
            f"The stream had {others} more {_many('domain', range(others))}, not in this model;"
            " what recognises domains was measured with them.",
        ]
    return "\n".join(lines) + "\n"


def _data(domains: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| domain | classes | training images | sha256 of the training split |"]
    lines.append("|---|---|---:|---|")
    for domain in domains:
        shown = ", ".join(domain["classes"][:SHOWN_CLASSES])
        more = len(domain["classes"]) - SHOWN_CLASSES
        classes = f"{len(domain['classes'])}: {shown}{f' and {more} more' if more > 0 else ''}"
        count, digest = domain["counts"].get("train") or "", domain["digests"].get("train", "")
        lines.append(f"| {_cell(domain['name'])} | {_cell(classes)} | {count} | `{digest}` |")
    return "\n".join(lines) + "\n"


def _many(word: str, things: Sequence[Any]) -> str:
    return word if len(things) == 1 else f"{word}s"


def _plain(text: str) -> str:
    """Names as text: in a line of Markdown they mark nothing up."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#" else letter for letter in line)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")
