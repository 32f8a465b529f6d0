"""Learn a stream of domains, one after another, and measure what was kept.

    python jobs/sequence.py
    python jobs/sequence.py stream=parquet stream.root=/data/domains run_dir=/data/runs/first
    ray job submit --working-dir . -- python jobs/sequence.py run_dir=/shared/runs/first

The same command on the same `run_dir` continues an interrupted run; further domains append to it.
Exit codes: 0 done, 1 failure, 2 a mistake of the user's, 3 the run is locked, 143 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from archipelago.actors.arguments import load_settings, reference_methods, reference_settings
from archipelago.actors.exits import exit_codes
from archipelago.actors.session import Session, Stopped
from archipelago.pipeline.errors import EXIT_DONE
from archipelago.pipeline.evaluation.console import summary
from archipelago.pipeline.evaluation.report import write_report


@exit_codes(
    "sequence",
    "the run failed; the same command continues from the last finished step",
    stopped=(Stopped,),
)
def main(arguments: Sequence[str]) -> int:
    """Run a sequence with Hydra overrides; returns the exit code."""
    settings = load_settings(arguments)
    with Session(settings) as session:
        learn_stream(session)
        for name in reference_methods(settings):
            with session.reference(reference_settings(arguments, name, settings)) as other:
                learn_stream(other)
        report = session.finish()
    Console().print(summary(report))
    return EXIT_DONE


def learn_stream(session: Session) -> None:
    """Learn, measure and report every stage that is still to be done."""
    learner = session.learner
    for stage in learner.restore():
        learner.learn(stage)
        session.publish()
        if learner.refine(stage):
            session.publish()
        record = learner.evaluate(stage)
        session.show(record)
        write_report(session.run, pictures=False)
        session.tracker.poke()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
