"""Answer any number of images with what a run has learned, into a folder of parquet files.

    python jobs/predict.py run_dir=/data/runs/first input=/data/photos output=/data/answers
    python jobs/predict.py run_dir=RUN input=photos.parquet output=OUT top_k=3 embedding=true
    python jobs/predict.py run_dir=RUN input=DIR output=OUT 'candidates=[cat,dog]' manifest=2
    ray job submit --working-dir . -- python jobs/predict.py cluster=cluster \\
        run_dir=s3://bucket/runs/first input=s3://bucket/photos output=s3://bucket/answers

`input` is a folder of images (with its subfolders, hidden files left out), of parquet files in
Hugging Face's image schema, or of both; or one such file; or a URI of these. The output has one row
an image: path, label, probability, domain, unseen, top_k, and error where it cannot be read.
The same command continues what was stopped, and takes up what has changed in the input since.
Beside the words below, settings are `cluster=...`, `cluster.*` and `stream.max_pixels`.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 another command writes to the output,
143 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field

from archipelago.actors.exits import exit_codes
from archipelago.actors.words import Words, read_words
from archipelago.pipeline.errors import EXIT_DONE


class Own(Words):
    """What prediction takes."""

    run_dir: str = Field(description="the run whose model answers, a folder or a URI")
    input: str = Field(description="images: a folder, a parquet file, or a URI of these")
    output: str = Field(description="a new folder for the answers, or a URI of one")
    manifest: int | None = Field(
        None, ge=0, description="which version of the model; null = the newest, 0 = frozen CLIP"
    )
    candidates: list[str] | None = Field(
        None, min_length=1, description="what images may be, [a,b]; null = all learned classes"
    )
    task: str | None = Field(None, description="the domain of all images, where it is known")
    top_k: int = Field(5, ge=1, description="how many classes of an image come back")
    abstain: float | None = Field(
        None, ge=0, le=1, description="share of the learned domains' images that may be refused"
    )
    embedding: bool = Field(False, description="true = with the image features of frozen CLIP")
    batch_size: int = Field(64, ge=1, description="images in one pass; more = more memory")


@exit_codes("predict", "not all images are answered; the same command continues")
def main(arguments: Sequence[str]) -> int:
    """Answer all images of an input; returns the exit code."""
    own, rest = read_words(arguments, Own)
    from archipelago.actors.prediction import Prediction, Request
    from archipelago.pipeline.prediction.answers import Question

    candidates = None if own.candidates is None else tuple(own.candidates)
    question = Question(candidates, own.task, own.top_k, own.abstain, own.embedding)
    request = Request(own.run_dir, own.input, own.output, question, own.manifest, own.batch_size)
    with Prediction(request, rest) as prediction:
        prediction.answer()
        prediction.tell()
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
