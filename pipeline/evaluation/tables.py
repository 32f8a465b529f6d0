"""matrix.parquet and confusion.parquet: the figures in long form, one measurement a row."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archipelago.pipeline.evaluation.records import Records

MATRIX = pa.schema(
    [
        ("stage", pa.int32()),
        ("task", pa.string()),
        ("setting", pa.string()),
        ("accuracy", pa.float64()),
        ("images", pa.int32()),
    ]
)
CONFUSION = pa.schema(
    [
        ("stage", pa.int32()),
        ("task", pa.string()),
        ("option", pa.string()),
        ("closed", pa.bool_()),
        ("images", pa.int32()),
    ]
)


def matrix(report: dict[str, Any]) -> bytes:
    """Percent by (stage, task, setting); stage -1 with setting `zero_shot` is frozen CLIP."""
    rows = []
    grids = [(-1, "zero_shot", report["zero_shot"])]
    for setting, found in report["settings"].items():
        if found is not None:
            grids += [(stage, setting, row) for stage, row in enumerate(found["matrix"])]
    for stage, setting, row in grids:
        for task, accuracy, images in zip(report["tasks"], row, report["images"], strict=True):
            if accuracy is not None:
                rows.append((stage, task, setting, accuracy, images))
    return _parquet(rows, MATRIX)


def confusion(records: Records) -> bytes:
    """Images by (stage, true task, option chosen); `closed`: among the learned tasks only."""
    rows = []
    for stage, record in sorted(records.evaluations.items()):
        answer = record["identifier"]
        if answer is None:
            continue
        learned = answer["options"][:-1]
        for task, counts in zip(record["tasks"], answer["confusion"], strict=True):
            pairs = zip(answer["options"], counts, strict=True)
            rows += [(stage, task, option, False, count) for option, count in pairs]
        for task, counts in zip(learned, answer["closed_confusion"], strict=True):
            pairs = zip(learned, counts, strict=True)
            rows += [(stage, task, option, True, count) for option, count in pairs]
    return _parquet(rows, CONFUSION)


def _parquet(rows: list[tuple], schema: pa.Schema) -> bytes:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return sink.getvalue().to_pybytes()
