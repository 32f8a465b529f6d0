"""The learned model from Python: any picture, any candidates, any version; one way of answering."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from archipelago.pipeline.errors import IntegrityError, UserError
from archipelago.pipeline.evaluation.protocol import stream_pairs
from archipelago.pipeline.learned import Answer, Ask, LearnedModel
from archipelago.pipeline.learned import model as learned_model
from archipelago.pipeline.learned.answering import Answered, Question
from archipelago.pipeline.learned.candidates import Candidate, match
from archipelago.pipeline.lifecycle.forget import forget_task
from archipelago.pipeline.methods.base import log_softmax
from archipelago.pipeline.records import class_list
from archipelago.pipeline.serving.model import ServedModel
from archipelago.pipeline.store import RunFolder
from tests.unit.tiny_run import TASKS, World, make_learner, open_run, run_settings
from tests.unit.tiny_serving import SERVING, copy_run, learned_run, point, test_images

FAST = {"batch_size": 64}  # of evaluation: a domain's test images in one pass, as when asked here
CLASSES = [f"{task} {number}" for task in TASKS for number in range(4)]


@pytest.fixture(scope="module")
def closed(served_world: World, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The four domains by closed form, published."""
    where = tmp_path_factory.mktemp("closed") / "run"
    run = learned_run(served_world, where, method={"name": "gda_per_task"})
    point(run, len(TASKS))
    return run


@pytest.fixture(scope="module")
def model(closed: RunFolder) -> LearnedModel:
    return LearnedModel.open(closed.uri)


@pytest.fixture(scope="module")
def images(served_world: World) -> np.ndarray:
    """Six test images of each domain, mixed."""
    each = [test_images(served_world, task) for task in TASKS]
    return np.concatenate(each)[np.random.default_rng(0).permutation(6 * len(TASKS))]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


# -- pictures ------------------------------------------------------------------------------------


def test_a_picture_may_come_in_any_form(
    model: LearnedModel, images: np.ndarray, tmp_path: Path
) -> None:
    few = images[:3]
    pictures = [Image.fromarray(pixels) for pixels in few]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    expected = model.answer(few)
    assert len(expected) == 3 and all(len(answer.classes) == 5 for answer in expected)
    forms: dict[str, Sequence[Any]] = {
        "PIL": pictures,
        "path": [tmp_path / f"{n}.png" for n in range(3)],
        "text": [str(tmp_path / f"{n}.png") for n in range(3)],
        "bytes": [_png(picture) for picture in pictures],
        "arrays": list(few),
        "mixed": [pictures[0], tmp_path / "1.png", few[2]],
    }
    for form, given in forms.items():
        assert model.answer(given) == expected, form
    odd = [
        np.zeros((50, 40, 3), np.uint8),
        Image.new("L", (9, 70), 80),
        Image.new("RGBA", (64, 48)),
        Image.new("1", (5, 5)),
        Image.new("RGB", (16, 16), (9, 200, 3)).quantize(4),
    ]
    assert len(model.answer(odd)) == len(model.embed(odd)) == 5
    assert model.answer([]) == [] and len(model.embed([])) == len(model.identify([]).novelty) == 0


def test_a_picture_that_cannot_be_read_is_named(model: LearnedModel, tmp_path: Path) -> None:
    fine, torn = Image.new("RGB", (8, 8)), tmp_path / "torn.png"
    torn.write_bytes(_png(Image.new("RGB", (64, 64), (1, 2, 3)))[:60])
    files = [(torn, str(torn)), (tmp_path / "nowhere.png", "nowhere.png")]
    odd = [b"no image", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), 7]
    for bad, name in [*files, *((one, "image 1") for one in odd)]:
        with pytest.raises(UserError) as caught:
            model.answer([fine, bad])
        assert name in str(caught.value) and "cannot be read as an image" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_many_pictures_are_few_passes(
    model: LearnedModel, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, embedded, found = model.answer(images), model.embed(images), model.identify(images)
    monkeypatch.setattr(learned_model, "PASS", 7)
    parts = model.answer(images)
    assert [a.task for a in parts] == [a.task for a in whole]
    assert [a.classes[0][0] for a in parts] == [a.classes[0][0] for a in whole]
    np.testing.assert_allclose(model.embed(images), embedded, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(model.identify(images).novelty, found.novelty, atol=1e-2)


# -- versions ------------------------------------------------------------------------------------


def test_any_version_of_a_run_answers(closed: RunFolder, images: np.ndarray) -> None:
    newest, first = LearnedModel.open(closed.uri), LearnedModel.open(closed.uri, manifest=1)
    assert list(newest.tasks) == list(TASKS) and list(first.tasks) == [TASKS[0]]
    assert newest.tasks[TASKS[1]].classes == tuple(CLASSES[4:8])
    assert {name for a in newest.answer(images, top_k=99) for name, _ in a.classes} == set(CLASSES)
    assert {n for a in first.answer(images, top_k=99) for n, _ in a.classes} == set(CLASSES[:4])
    assert newest.identify(images).options == TASKS
    assert LearnedModel.open(Path(closed.uri), manifest=4).answer(images) == newest.answer(images)


def test_a_version_whose_domain_was_erased_says_so(closed: RunFolder, tmp_path: Path) -> None:
    run = copy_run(closed, tmp_path / "run")
    forget_task(run.uri, TASKS[1], SERVING).finish(erase=True)
    with pytest.raises(
        UserError,
        match=r"^manifest=3: holds boats, whose files are erased; the newest, 5, answers$",
    ):
        LearnedModel.open(run.uri, manifest=3)
    assert list(LearnedModel.open(run.uri, manifest=1).tasks) == [TASKS[0]]
    assert TASKS[1] not in LearnedModel.open(run.uri).tasks
    (run.folder.local or tmp_path).joinpath("groups/000-apples/COMMIT").unlink()
    with pytest.raises(IntegrityError):  # nobody erased that
        LearnedModel.open(run.uri)


def test_a_run_answers_before_it_has_learned_anything(
    served_world: World, tmp_path: Path, images: np.ndarray
) -> None:
    run = RunFolder(tmp_path / "run")
    chosen = run_settings(served_world, method={"name": "gda_per_task"})
    open_run(served_world, run, chosen)
    model = LearnedModel.open(run.uri)
    assert model.tasks == {} and all(a.classes == () for a in model.answer(images))
    (answer,) = model.answer(images[:1], candidates=["red", "green"])
    assert answer.unseen and answer.task is None and answer.unseen_probability == 1.0
    assert sum(p for _, p in answer.classes) == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"^task=apples: is not learned; learned are: none$"):
        model.answer(images, task="apples")
    learner = make_learner(served_world, run, chosen)
    with run.lock():
        learner.learn(0)  # a run that still learns
    assert list(LearnedModel.open(run.uri).tasks) == [TASKS[0]]


def test_what_cannot_be_opened_or_asked_is_told_in_one_line(
    closed: RunFolder, model: LearnedModel, images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"^manifest=9: the run has 1, 2, 3, 4$"):
        LearnedModel.open(closed.uri, manifest=9)
    with pytest.raises(UserError, match=r"run\.json does not exist: this is not a run folder"):
        LearnedModel.open(tmp_path / "nowhere")
    with pytest.raises(
        UserError, match=r"^task=pets: is not learned; learned are: apples, boats, cats, doors$"
    ):
        model.answer(images, task="pets")


def test_a_method_that_is_given_the_domain_wants_it(
    served_world: World, tmp_path: Path, images: np.ndarray
) -> None:
    run = RunFolder(tmp_path / "run")
    chosen = run_settings(served_world, method={"name": "lora_per_task"}, training={"steps": 1})
    open_run(served_world, run, chosen)
    learner = make_learner(served_world, run, chosen)
    with run.lock():
        learner.learn(0)
    model = LearnedModel.open(run.uri)
    for ask in (model.answer, model.identify):
        with pytest.raises(UserError, match="lora_per_task does not tell domains apart"):
            ask(images)
    (answer,) = model.answer(images[:1], task=TASKS[0])
    assert answer.task == TASKS[0] and answer.unseen_probability is None


# -- candidates ----------------------------------------------------------------------------------


def test_candidates_are_names_or_pairs(model: LearnedModel, images: np.ndarray) -> None:
    names = ["boats 1", "zebra", "apples 3", "boats 1"]
    for answer in model.answer(images, candidates=names, top_k=9):
        assert sorted(name for name, _ in answer.classes) == ["apples 3", "boats 1", "zebra"]
        assert sum(p for _, p in answer.classes) == pytest.approx(1.0)
    pairs = [("boats", "boats 1"), ("apples", "apples 3")]
    for a, b in zip(
        model.answer(images, candidates=pairs),
        model.answer(images, candidates=["boats 1", "apples 3"]),
        strict=True,
    ):
        assert a == b, "nothing that nobody knows: the names are those of the pairs"
    folded = model.answer(images, candidates=["BOATS  1", "Apples 3"])
    for a, b in zip(folded, model.answer(images, candidates=pairs), strict=True):
        assert [p for _, p in a.classes] == [p for _, p in b.classes]
    strange = model.answer(images, candidates=[("pets", "boats 1"), ("pets", "apples 3")])
    assert all(a.unseen and a.task is None for a in strange), "no such domain was learned"


def test_templates_say_how_a_new_name_is_read(model: LearnedModel, images: np.ndarray) -> None:
    plain = model.answer(images, candidates=["zebra", "yak"])
    default = [Candidate(name, None, ("a photo of a {}.",)) for name in ("zebra", "yak")]
    other = [Candidate(name, None, ("one {} among many", "{}")) for name in ("zebra", "yak")]
    assert model.answer(images, candidates=default) == plain
    assert model.answer(images, candidates=other) != plain


def test_equal_names_of_two_domains_add_up(model: LearnedModel, images: np.ndarray) -> None:
    known = model.state.records
    pairs = [Candidate("boats 1", "boats"), Candidate("boats 1", "cats"), Candidate("apples 0")]
    found = match(pairs, known)
    assert found.names == ("boats 1", "apples 0")
    assert [k.task for k in found.known] == ["boats", "apples"]
    assert found.unknown.tolist() == [True, False], "boats 1 of cats; apples 0, which is known"
    for answer in model.answer(images, candidates=pairs):
        assert sum(p for _, p in answer.classes) == pytest.approx(1.0)
        assert [name for name, _ in answer.classes].count("boats 1") == 1
    held = np.log([[0.3, 0.2]]), np.log([[0.1, 0.4]])
    added = Answered(*held, np.zeros(1), np.zeros((1, 2))).log_names(found)
    np.testing.assert_allclose(np.exp(added), [[0.3 + 0.1, 0.2 + 0.4]])


def test_a_given_domain_keeps_to_its_classes(model: LearnedModel, images: np.ndarray) -> None:
    for answer in model.answer(images, task="cats", top_k=99):
        assert {name for name, _ in answer.classes} == set(CLASSES[8:12])
        assert (answer.task, answer.task_confidence, answer.unseen) == ("cats", 1.0, False)
    chosen = model.answer(images, candidates=["cats 0", "boats 0"], task="cats")
    assert all(answer.task == "cats" for answer in chosen)


def test_who_abstains_refuses_the_newest_looking(model: LearnedModel, images: np.ndarray) -> None:
    novelty = model.identify(images).novelty
    assert model.state.identifier is not None
    threshold = model.state.identifier.refusal_threshold(0.2)
    answers = model.answer(images, abstain=0.2)
    assert threshold is not None
    assert [a.refused for a in answers] == (novelty > threshold).tolist()
    assert 0 < sum(a.refused for a in answers) < len(images)
    for answer, plain in zip(answers, model.answer(images), strict=True):
        assert (answer.classes == ()) == answer.refused and not plain.refused
        assert answer.refused or answer == plain
    assert not any(a.refused for a in model.answer(images, abstain=0.2, task="cats"))


# -- invariant 10: the ends of the formula ---------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"name": "gda_per_task"},
        {"name": "ridge_per_task"},
        {"name": "trge", "unseen": {"lambda_max": 0.0}},
        {"name": "archipelago", "options": {"debias": 0.0, "group": "off"}},
        {"name": "archipelago", "options": {"debias": 0.0, "group": "off", "policy": "hard"}},
    ],
    ids=lambda parts: "-".join([parts["name"], *map(str, parts.get("options", {}).values())]),
)
def test_unknown_candidates_get_frozen_clip_and_one_domains_get_its_own_answer(
    served_world: World, tmp_path: Path, images: np.ndarray, parts: dict[str, Any]
) -> None:
    run = learned_run(
        served_world, tmp_path / "run", method=parts, training={"steps": 2}, evaluation=FAST
    )
    model = LearnedModel.open(run.uri)
    names = ["zebra", "yak", "red bus", "a grey wall"]
    u_CF = model.texts.get(class_list(names), None)
    v_BF = model.embed(images).astype(np.float64)
    scale = model.runtime.backbone.logit_scale
    frozen = np.exp(log_softmax(scale * v_BF @ u_CF.astype(np.float64).T))
    for p, answer in zip(frozen, model.answer(images, candidates=names), strict=True):
        assert answer.classes == tuple(
            (names[at], float(p[at])) for at in np.argsort(-p, kind="stable")
        )
        assert answer.unseen and answer.task is None and answer.weight == 0.0
    for task in TASKS[:2]:
        own = [(task, name) for name in model.tasks[task].classes]
        asked = model.answer(images, candidates=own)
        for a, b in zip(asked, model.answer(images, task=task), strict=True):
            assert a.classes == b.classes, "to the bit"
            assert a.task == b.task == task and not a.unseen


# -- invariant 11: one implementation --------------------------------------------------------------


def _wishes(task: str) -> list[Ask]:
    return [
        Ask(top_k=16),
        Ask(labels=("boats 1", "zebra", "apples 3", "yak"), top_k=16),
        Ask(labels=tuple(CLASSES), top_k=3),
        Ask(task=task, top_k=16),
        Ask(task=task, labels=("zebra", f"{task} 2"), top_k=16),
    ]


@pytest.mark.parametrize("method", ["trge", "gda_per_task"])
def test_python_and_the_endpoint_say_the_same_to_the_bit(
    served_run: RunFolder, closed: RunFolder, images: np.ndarray, method: str
) -> None:
    run = {"trge": served_run, "gda_per_task": closed}[method]
    model, served = LearnedModel.open(run.uri), ServedModel(run.uri, SERVING, "cpu")
    assert model.state.method.name == method
    unseen = 0
    strange = np.random.default_rng(0).integers(0, 256, images[:8].shape, np.uint8)
    images = np.concatenate([images, strange])
    for ask in _wishes("cats"):
        _, answers, _ = served.classify(images, [ask] * len(images))
        labels = None if ask.labels is None else list(ask.labels)
        said = model.answer(images, labels, ask.task, ask.top_k)
        assert said == answers, ask
        unseen += sum(answer.unseen for answer in said)
    assert unseen, "some were taken for images of no learned domain"


@pytest.mark.parametrize("method", ["trge", "gda_per_task", "archipelago"])
@pytest.mark.parametrize("stages", [2, 4])
def test_what_is_measured_is_what_is_answered(
    served_world: World, tmp_path: Path, method: str, stages: int
) -> None:
    """The candidates of X-TAIL, learned or not: equal decisions; equal bits where nothing runs
    but frozen CLIP, whose passes are of equal batches here."""
    chosen = {"name": method, "unseen": {"lambda_max": 0.7}}
    run = learned_run(served_world, tmp_path / "run", method=chosen, evaluation=FAST)
    versions = {method: stages} | {"archipelago": 2 * stages}  # a closed form, then a group
    model = LearnedModel.open(run.uri, versions[method])
    learner = make_learner(served_world, run, model.runtime.settings)
    for stage in range(stages):
        learner._done = run.completed_stages()
        learner.learn(stage)
    evaluator, pairs = learner.evaluator, stream_pairs(served_world.domains)
    for domain in served_world.domains:
        images = test_images(served_world, domain.name, 99)
        labels, view = evaluator.labels(domain.name), evaluator.view(domain.name)
        assert learner.state.identifier is not None
        found = learner.state.identifier.identify(evaluator.evidence(domain.name))
        right = evaluator.measured(learner.state, domain.name, found).right
        said = model.answer(images, pairs, top_k=len(pairs))
        best = [answer.classes[0][0] for answer in said]
        wanted = [domain.classes[label] for label in labels]
        assert right["xtail_merged"].tolist() == [a == b for a, b in zip(best, wanted, strict=True)]
        question = Question(learner.state, match(pairs, learner.state.records), view, found)
        view.prepare(question.pairs())
        measured = np.exp(question.answer().log_names(question.candidates))
        answered = np.array([_in_order(answer, question.candidates.names) for answer in said])
        if method == "gda_per_task" and stages == 4:
            assert np.array_equal(answered, measured)
        np.testing.assert_allclose(answered, measured, atol=1e-4)
        assert [a.unseen for a in said] == question.taken.tolist()
        if domain.name in learner.state.records:
            given = model.answer(images, task=domain.name)
            best = [answer.classes[0][0] for answer in given]
            assert right["mtil_given"].tolist() == [
                a == b for a, b in zip(best, wanted, strict=True)
            ]


def _in_order(answer: Answer, names: Sequence[str]) -> list[float]:
    found = dict(answer.classes)
    return [found[name] for name in names]


@torch.no_grad()
def test_class_features_that_a_record_holds_are_its_functions(
    served_run: RunFolder, tmp_path: Path
) -> None:
    """Also those of a group that lost a neighbour, and with it the neighbour's text experts."""
    whole = LearnedModel.open(served_run.uri)
    lender = next(g.neighbours[0]["task"] for g in whole.state.groups if g.neighbours)
    run = copy_run(served_run, tmp_path / "run")
    forget_task(run.uri, lender, SERVING).finish(erase=False)
    changed = 0
    for model in (whole, LearnedModel.open(run.uri)):
        for name, record in model.tasks.items():
            assert record.own_CF is not None and record.text_CF is not None
            pairs = ((record.own_CF, model.state.function(name)), (record.text_CF, None))
            for stored, function in pairs:
                fresh = model.state.method.encode_list(record.listed, function).numpy()
                np.testing.assert_allclose(stored, fresh, atol=1e-5)
            before = whole.tasks[name].own_CF
            changed += int(before is not None and np.abs(record.own_CF - before).max() > 1e-4)
    assert changed, "a neighbour that is gone is heard no more"
