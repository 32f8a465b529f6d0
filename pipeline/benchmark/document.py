"""compare.json and what is made of it, from the rows and runs that are there so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archipelago.pipeline.benchmark import page, summary
from archipelago.pipeline.benchmark.certainty import intervals, ranking
from archipelago.pipeline.benchmark.plan import Plan
from archipelago.pipeline.evaluation.records import Records
from archipelago.pipeline.store import Folder
from archipelago.pipeline.store.documents import plain

SCHEMA = 1
OURS = "archipelago"


def reference_of(plan: Plan, labels: Sequence[str]) -> str | None:
    """The method that differences are taken from: ours where it takes part, else the first."""
    ours = [rival.label for rival in plan.rivals if rival.method == OURS and rival.label in labels]
    return next(iter([*ours, *labels]), None)


def build(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Sequence[tuple[str, int, Records]]],
    *,
    samples: int,
    versions: Mapping[str, str],
    estimated_s: float | None,
) -> dict[str, Any]:
    """The dictionary that compare.json holds."""
    reference = reference_of(plan, list(runs))
    done, wanted = len(rows), sum(len(plan.rivals_in(world)) for world in plan.worlds())
    gradients = sorted({row["image_gradients"] for row in rows if row["image_gradients"]})
    same = "" if len(gradients) != 1 else f" ({gradients[0]:,} image gradients each)"
    tuned = " Learning rates by training images of the first two domains." if plan.tune else ""
    caption = (
        f"{done} of {wanted} runs. Percent; ± is the standard deviation over worlds (a stream in"
        " one order under one seed). All methods that train take as many steps of as many"
        f" images{same}.{tuned} Numbers and bytes are those that an answer needs."
    )
    return plain(
        {
            "schema": SCHEMA,
            "status": "complete" if done == wanted else "partial",
            "caption": caption,
            "rows": list(rows),
            "intervals": [] if reference is None else intervals(runs, reference, samples),
            "ranking": ranking(rows),
            "estimated_s": estimated_s,
            "versions": dict(versions),
        }
    )


def write(folder: Folder, document: dict[str, Any], *, pictures: bool = True) -> None:
    """compare.json, compare.md, compare.html, compare.parquet and plots, each atomically.

    `pictures=False` leaves out the plots (after a run that is not the last).
    """
    rows = document["rows"]
    if rows:
        folder.write("compare.parquet", summary.parquet(rows))
        for name, data in page.plots(document).items() if pictures else ():
            folder.write(f"plots/compare-{name}.png", data)
    folder.write("compare.md", summary.markdown(document).encode())
    folder.write("compare.html", page.render(document).encode())
    folder.write_json("compare.json", document)
