"""Learning a stream, as every face does it: a job, the command, Python, a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archipelago.actors.arguments import load_settings, reference_methods, reference_settings
from archipelago.actors.resources import Resources
from archipelago.actors.session import Session
from archipelago.pipeline.config import load, stored_settings
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.methods import method_class
from archipelago.pipeline.records.group import read_card
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import GroupRef, RunFolder
from archipelago.pipeline.streams import open_stream


def learn(words: Sequence[str]) -> tuple[Settings, dict[str, Any]]:
    """Learn a stream and its references; the same words continue an interrupted run.

    Args:
        words: settings as of the command line.

    Returns:
        The settings, with `run_dir`, and the report.

    Raises:
        UserError: a mistake in the settings or the data.
        LockedError: another run holds the folder.
        Stopped: SIGTERM or Ctrl-C; the state is saved.
    """
    settings = load_settings(words)
    return settings, _learn(settings, words)


def relearn(run_dir: str, task: str, words: Sequence[str]) -> dict[str, Any]:
    """Forget a domain and learn it anew from its images as they are now.

    Args:
        run_dir: the run; its own settings hold.
        task: the domain.
        words: settings of `cluster` and `tracking`, where they differ from the run's.

    Returns:
        The report.

    Raises:
        UserError: the domain is not learned, or its stream cannot be read; nothing is forgotten.
    """
    run = RunFolder.open(run_dir)
    settings = of_run(run, words)
    domains = open_stream(settings.stream, settings.seed, method_class(settings.method.name).dense)
    if task not in {domain.name for domain in domains}:
        known = ", ".join(domain.name for domain in domains)
        raise UserError(f"task={task}: is not in the stream any more; there is {known}")
    if task not in _waiting(run):
        forget_task(run.uri, task, settings.serving).finish(erase=False, again=True)
    return _learn(settings, None)


def of_run(run: RunFolder, words: Sequence[str]) -> Settings:
    """A run's own settings, where it runs and is tracked as the words say.

    Raises:
        UserError: a word for anything else.
    """
    stored = stored_settings(run.read())
    sections = {word.partition("=")[0].partition(".")[0] for word in words}
    other = sorted(sections - {"cluster", "tracking"})
    if other:
        raise UserError(f"{other[0]}: the run has its own; give settings of cluster and tracking")
    given = load(words)
    changes = {name: getattr(given, name) for name in sections} | {"run_dir": run.uri}
    evaluation = stored.evaluation.model_copy(update={"references": []})  # they stay as they are
    return stored.model_copy(update={**changes, "evaluation": evaluation})


def _waiting(run: RunFolder) -> set[str]:
    """Domains that were forgotten to be learned anew, and are not learned yet."""
    waiting: set[str] = set()
    for event in run.journal.events():
        if event["event"] == "forgotten" and event.get("again"):
            waiting |= set(event["tasks"])
    return waiting - {name for ref in run.current_groups() for name in tasks_of(run, ref)}


def tasks_of(run: RunFolder, ref: GroupRef) -> list[str]:
    """The domains of a stored group."""
    return [task["name"] for task in read_card(run, ref)["tasks"]]


def _learn(settings: Settings, words: Sequence[str] | None) -> dict[str, Any]:
    """A run, and the references that its words ask for; without words there are none."""
    with Resources(settings) as resources, Session(resources) as session:
        learn_stream(session)
        if words is not None:
            for name in reference_methods(settings):
                with session.reference(reference_settings(words, name, settings)) as other:
                    learn_stream(other)
        return session.finish()


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
