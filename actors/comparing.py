"""A comparison at work: every method in every world, a run each, in one folder."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from archipelago.actors.arguments import load_settings
from archipelago.actors.learning import learn_stream
from archipelago.actors.resources import Resources
from archipelago.actors.session import Session
from archipelago.actors.side_by_side import run_side_by_side
from archipelago.actors.versions import versions
from archipelago.pipeline import handbook
from archipelago.pipeline.benchmark import document
from archipelago.pipeline.benchmark.cells import (
    CELL,
    image_gradients,
    learning_seconds,
    passes,
    row_of,
)
from archipelago.pipeline.benchmark.memory import PeakMemory
from archipelago.pipeline.benchmark.plan import (
    Plan,
    Rival,
    World,
    claim,
    ordered,
    shared,
)
from archipelago.pipeline.benchmark.presets import PRESETS, check_sets, name_deviations
from archipelago.pipeline.benchmark.probe import BATCH, Probe, Speed, estimate
from archipelago.pipeline.benchmark.tuning import (
    DOMAINS,
    SHARE,
    Tuner,
    rate_of,
    trains,
    tuning_s,
    with_rate,
)
from archipelago.pipeline.config import redacted
from archipelago.pipeline.errors import UserError
from archipelago.pipeline.evaluation.records import Records, read_records
from archipelago.pipeline.evaluation.report import write_report
from archipelago.pipeline.learned.passed import FrozenPasses
from archipelago.pipeline.methods import method_class, method_options
from archipelago.pipeline.pace import in_words
from archipelago.pipeline.planning import stages_of
from archipelago.pipeline.settings import Settings
from archipelago.pipeline.store import Folder, RunFolder
from archipelago.pipeline.streams import ImageTable, open_stream, stratified_fold
from archipelago.pipeline.streams.folds import check_held_out
from archipelago.pipeline.streams.rehearsed import rehearsed

log = logging.getLogger("archipelago")

PASSED_BYTES = 2**30  # of frozen features and sums that are kept for further runs
BASE = Rival("zero_shot", "zero_shot")  # whose session, images and features all others share


class Comparison:
    """A plan at work in its folder.

    Args:
        plan: what is compared.
        words: settings that all runs share.
    """

    def __init__(self, plan: Plan, words: Sequence[str]) -> None:
        self.plan = plan
        self.words = ["tracking=off", *words]
        self._composed: dict[tuple[str, Rival, int], Settings] = {}
        first = self._loaded("", BASE, 0)
        given = any(word.startswith("run_dir=") for word in words)
        if not given or first.run_dir is None:
            raise UserError("run_dir: a comparison wants a folder, as run_dir=/data/runs/side")
        self.root = first.run_dir
        self.folder = Folder(self.root)
        self.estimated_s: float | None = None
        self._passed = FrozenPasses(PASSED_BYTES)
        self._rates: dict[tuple[str, str], float] = {}
        self._floor: float | None = None  # MiB of this process before the first run
        self._names = {
            (stream, seed): self._tasks(stream, seed)
            for stream in plan.streams
            for seed in plan.seeds
        }
        for world in plan.worlds():
            for rival in plan.rivals_in(world):
                settings = self.settings(world, rival)
                method_options(settings.method)
                stages_of(settings, settings.stream.order or [])

    # -- settings ----------------------------------------------------------------------------

    def _loaded(self, stream: str, rival: Rival, seed: int) -> Settings:
        key = (stream, rival, seed)
        if key not in self._composed:
            self._composed[key] = self._compose(stream, rival, seed)
        return self._composed[key]

    def _compose(self, stream: str, rival: Rival, seed: int) -> Settings:
        chosen = []
        if stream:
            known = stream in handbook.options("stream")
            chosen = [f"stream={stream}"] if known else ["stream=parquet", f"stream.root={stream}"]
        # What the user says of the stream (its options, say) comes after which stream it is.
        return load_settings([*chosen, *self.words, *rival.words(), f"seed={seed}"])

    def _tasks(self, stream: str, seed: int) -> list[str]:
        """Tasks of a stream, as its settings order them."""
        chosen = self._loaded(stream, BASE, seed).stream
        words = [word.partition("=")[2] for word in self.words if word.startswith("stream=")]
        preset = next((name for name in [*words[-1:], stream] if name in PRESETS), None)
        if preset is not None:
            check_sets(preset, chosen, seed)
        domains = open_stream(chosen, seed, dense=True)
        if preset is not None:
            name_deviations(preset, domains)
        dense = next((domain for domain in domains if domain.kind is not None), None)
        if dense is not None:
            names = ", ".join(rival.label for rival in self.plan.rivals)
            raise UserError(
                f"methods=[{names}]: {dense.name!r} is a dense task ({dense.kind}), and a"
                " comparison is of accuracies; give a stream of images with classes"
            )
        return [domain.name for domain in domains]

    def settings(self, world: World, rival: Rival) -> Settings:
        """Settings of one run."""
        loaded = self._loaded(world.stream, rival, world.seed)
        order = ordered(self._names[world.stream, world.seed], world.order, world.seed)
        cache = loaded.cluster.cache_dir or self.folder.child("cache").uri
        rate = self._rates.get((world.stream, rival.label))
        if rate is not None:
            loaded = with_rate(loaded, rate, None)
        return loaded.model_copy(
            update={
                "run_dir": f"{self.root}/{world.folder}",
                "stream": loaded.stream.model_copy(update={"order": order}),
                "cluster": loaded.cluster.model_copy(update={"cache_dir": cache}),
                "evaluation": loaded.evaluation.model_copy(update={"references": []}),
            }
        )

    # -- work --------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns what compare.json holds."""
        claim(self.folder, {stream: self._common(stream) for stream in self.plan.streams})
        if self.plan.only:
            for world in self._worlds():
                self._work(world)
            return {}
        together = self._together()
        for world in self._worlds():
            if world not in together:
                self._work(world)
        if together:
            self._side_by_side(together)
        return self.write()

    def _worlds(self) -> list[World]:
        """Those that this process is for and that are not done."""
        only = self.plan.only
        worlds = [w for w in self.plan.worlds() if not only or w.folder == only]
        return [world for world in worlds if self.pending(world)]

    def _together(self) -> list[World]:
        """Worlds for processes of their own; rates are found before, in a stream's first one."""
        worlds = self._worlds()
        if self.plan.tune:
            first = {world.stream: world for world in reversed(worlds)}
            worlds = [world for world in worlds if first[world.stream] != world]
        return worlds if self.plan.at_once > 1 and len(worlds) > 1 else []

    def _side_by_side(self, worlds: Sequence[World]) -> None:
        """Work on several worlds at a time, sharing out the cores of this machine."""
        at_once, done = self.plan.at_once, []
        threads = max(1, (os.cpu_count() or 1) // at_once)
        share = [f"cluster.{kind}.threads={threads}" for kind in ("train", "encode")]
        command = [sys.executable, "-m", "archipelago.jobs.compare", *self.plan.words()]
        command += [*share, *self.words]

        def on_done(name: str) -> None:
            done.append(name)
            log.info("%s is done, %d of %d", name, len(done), len(worlds))
            self.write(pictures=False)

        commands = {
            " ".join(f"{w.stream} seed {w.seed} {w.order}".split()): [*command, f"world={w.folder}"]
            for w in worlds
        }
        log.info("%d worlds, %d at a time", len(worlds), at_once)
        run_side_by_side(commands, at_once, threads, on_done)

    def _common(self, stream: str) -> dict[str, Any]:
        """What all runs on a stream have in common: settings, domains, and their given order."""
        names = self._names[stream, self.plan.seeds[0]]
        found = shared(redacted(self._loaded(stream, BASE, 0))) | {"stream.domains": sorted(names)}
        found["tune"] = self.plan.tune
        return found | ({"stream.order": names} if "given" in self.plan.orders else {})

    def home(self, world: World, rival: Rival) -> RunFolder:
        """Where a run lies."""
        base = RunFolder(f"{self.root}/{world.folder}", read_only=True)
        return base if rival == BASE else base.reference(rival.folder)

    def pending(self, world: World) -> list[Rival]:
        """Who has no row in a world yet."""
        wanted = self.plan.rivals_in(world)
        return [r for r in wanted if not self.home(world, r).folder.exists(CELL)]

    def _work(self, world: World) -> None:
        held = Resources(self.settings(world, BASE), self._passed)
        with held as resources, Session(resources) as session:
            if self.estimated_s is None:
                self._check(session, world)
                self._estimate(session)
            peak, saved = PeakMemory(), self._saved_s
            with peak:
                learn_stream(session)
            self._peak_mib(peak)
            if BASE in self.pending(world):
                self._keep(world, BASE, session, peak, saved, write_report(session.run))
            for rival in [r for r in self.pending(world) if r != BASE]:
                log.info("%s, seed %d, %s", rival.label, world.seed, world.order)
                self._tune(session, world, rival)
                peak, saved = PeakMemory(), self._saved_s
                with session.reference(self.settings(world, rival), rival.folder) as other:
                    with peak:
                        learn_stream(other)
                    report = write_report(other.run, pictures=False)
                    self._keep(world, rival, other, peak, saved, report)
                if not self.plan.only:
                    self.write(pictures=False)
            session.finish()

    def _tune(self, session: Session, world: World, rival: Rival) -> None:
        """Find a method's learning rate on the stream's first domains, if that is asked for."""
        settings, key = self.settings(world, rival), (world.stream, rival.label)
        if not self.plan.tune or key in self._rates or not trains(settings):
            return
        domains = [
            rehearsed(domain, SHARE, settings.seed) for domain in session.learner.domains[:DOMAINS]
        ]

        session.resources.trainer.start(settings.cluster, session.run.uri)  # outlives the trials

        def trial(changed: Settings) -> float:
            name = f"trial-{rival.folder}-{rate_of(changed):.3g}"
            try:
                with session.reference(one_lane(changed), name, domains) as other:
                    learn_stream(other)
                    report = write_report(other.run, pictures=False)
            finally:
                if not session.resources.signals.heard:
                    session.run.drop_reference(name)
            return float(report["settings"]["mtil_given"]["last"])

        names = [domain.name for domain in domains]
        tuner = Tuner(self.folder, trial)
        self._rates[key] = tuner.rate(world.stream or "stream", rival.label, settings, names)

    @property
    def _saved_s(self) -> float:
        """What statistics of training images that were known already took once."""
        return self._passed.saved_s.get("statistics", 0.0)

    def _keep(
        self,
        world: World,
        rival: Rival,
        session: Session,
        peak: PeakMemory,
        saved: float,
        report: dict[str, Any],
    ) -> None:
        """Note the row of a finished run beside it; passes that others made count as its own."""
        learner = session.learner
        row = row_of(
            rival,
            world,
            report,
            gradients=image_gradients(session.settings, learner.domains),
            per_prediction=passes(learner.state, learner.evaluator),
            peak_mib=self._peak_mib(peak),
            learned_s=learning_seconds(session.run) + self._saved_s - saved,
        )
        session.run.folder.write_json(CELL, row)

    def _peak_mib(self, peak: PeakMemory) -> float | None:
        """What a run added to the process, on top of what this was before the first one."""
        if peak.mib is None or peak.before is None:
            return None
        if self._floor is None:
            self._floor = peak.before
        return self._floor + peak.mib - peak.before

    def _check(self, session: Session, world: World) -> None:
        """Refuse a method that cannot learn this stream before any other has begun."""
        needing = [r for r in self.plan.rivals if method_class(r.method).holds_out]
        held_out = session.settings.stream.held_out
        for domain in session.learner.domains if needing else ():
            table = ImageTable.open(domain.tables["train"])
            rows, held = stratified_fold(
                table.labels, held_out, world.seed, domain.name, table.groups
            )
            try:
                check_held_out(domain.name, rows, held, table.groups)
            except UserError as error:
                raise UserError(
                    f"methods: {needing[0].label} cannot learn this stream: {error}"
                ) from None

    def _estimate(self, session: Session) -> None:
        """Say how long all that is pending will take."""
        learner, total, count = session.learner, 0.0, 0
        speeds: dict[str, Speed] = {}
        tuned: set[tuple[str, str]] = set()
        seen: set[str] = set()  # streams whose training images another method has looked at
        table = ImageTable.open(learner.domains[0].tables["train"])
        images = table.images(np.arange(min(BATCH, len(table))))
        probe = Probe(session.settings, learner.kernels, learner.domains[0], images)
        train = [int(domain.counts["train"]) for domain in learner.domains]
        test = sum(int(domain.counts["test"]) for domain in learner.domains)
        for world in self._worlds():
            for rival in self.pending(world):
                settings = self.settings(world, rival)
                if rival.label not in speeds:
                    speeds[rival.label] = probe.speed(settings)
                speed, known = speeds[rival.label], world.stream in seen
                total += estimate(settings, speed, train, test, seen=known)
                if self.plan.tune and trains(settings) and (world.stream, rival.label) not in tuned:
                    tuned.add((world.stream, rival.label))
                    total += tuning_s(settings, speed, train)
                if method_class(rival.method).learns:
                    seen.add(world.stream)
                count += 1
        self.estimated_s = total
        log.info("about %s for %d runs, by a probe on this machine", in_words(total), count)

    # -- results -----------------------------------------------------------------------------

    def write(self, *, pictures: bool = True) -> dict[str, Any]:
        """Everything that can be said so far, in the comparison's folder."""
        rows: list[dict[str, Any]] = []
        runs: dict[str, list[tuple[str, int, Records]]] = {}
        for world in self.plan.worlds():
            for rival in self.plan.rivals_in(world):
                home = self.home(world, rival)
                if not home.folder.exists(CELL):
                    continue
                rows.append(home.folder.read_json(CELL))
                records = read_records(home)
                if records is not None:
                    runs.setdefault(rival.label, []).append((world.stream, world.seed, records))
        samples = self._loaded(self.plan.streams[0], BASE, 0).evaluation.bootstrap
        found = document.build(
            self.plan,
            rows,
            runs,
            samples=samples,
            versions=versions(),
            estimated_s=self.estimated_s,
        )
        document.write(self.folder, found, pictures=pictures)
        return found


def one_lane(settings: Settings) -> Settings:
    """The same run, its stages one after another."""
    train = settings.cluster.train.model_copy(update={"lanes": 1})
    cluster = settings.cluster.model_copy(update={"train": train})
    return settings.model_copy(update={"cluster": cluster})
