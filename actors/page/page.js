// Brings an image in, asks the server, and follows the growing model.

import { Problem, classify, example, models, slim, tasks as readTasks } from "./api.js";
import { Sea } from "./sea.js";
import { $, hideProblem, seaText, showAnswer, showDomain, showProblem, showState, showTasks, spoken, stateText } from "./view.js";

const EVERY = 4000; // ms between looks at the model's generation
const SLOWEST = 30000; // ms, when the server is away
const sea = new Sea($("sea"));
let tasks = [];
let generation = null;
let answer = null;
let image = null; // what is asked about: a file
let running = null; // the question under way, to call off when another comes

// --- asking ---------------------------------------------------------------------------------

function asked() {
  const labels = $("labels").value.split("\n").map((line) => line.trim()).filter(Boolean);
  return { task: $("task").value, labels, top: Number($("top").value) };
}

async function ask() {
  if (!image) return;
  running?.abort();
  const mine = (running = new AbortController());
  const question = asked();
  hideProblem();
  $("answer").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    const reply = await patiently(() => classify(image, { ...question, signal: mine.signal }), mine.signal);
    if (mine.signal.aborted) return;
    answer = { ...reply, asked: question, roundTrip: performance.now() - started };
    showAnswer(answer, tasks);
    drawSea();
    $("news").textContent = spoken(answer);
    if (reply.generation !== generation) look();
  } catch (problem) {
    if (!mine.signal.aborted) fail(problem);
  } finally {
    if (running === mine) $("answer").setAttribute("aria-busy", "false");
  }
}

// A busy server says when to come back: once, that is done without a word.
async function patiently(question, signal) {
  try {
    return await question();
  } catch (problem) {
    const busy = problem instanceof Problem && [429, 503].includes(problem.code) && problem.retryAfter;
    if (!busy || problem.retryAfter > 5 || signal.aborted) throw problem;
    await new Promise((done) => setTimeout(done, problem.retryAfter * 1000));
    return question();
  }
}

function fail(problem) {
  const known = problem instanceof Problem;
  const again = !known || [0, 429, 500, 502, 503, 504].includes(problem.code);
  answer = null;
  $("result").hidden = $("facts").hidden = true;
  $("waiting").hidden = true;
  showProblem(known ? problem : new Problem("Something went wrong. Please try again."), again);
  drawSea();
}

function drawSea() {
  const result = answer?.result ?? null;
  sea.show(tasks, result);
  $("sea-text").textContent = seaText(tasks, result);
}

// --- bringing an image in -------------------------------------------------------------------

let shown = null;
let turn = 0; // only the image that came last counts

async function take(file, about = "your image") {
  if (!file) return;
  const mine = ++turn;
  if (file.type && !file.type.startsWith("image/")) {
    running?.abort();
    fail(new Problem(`${file.name || "That"} is not an image. Please choose a picture.`, 415));
    return;
  }
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  const preview = $("preview");
  preview.alt = about;
  preview.src = shown;
  preview.hidden = false;
  preview.onerror = () => { preview.hidden = true; $("drop").classList.remove("full"); };
  $("drop").classList.add("full");
  const small = await slim(file);
  if (mine !== turn) return;
  image = small;
  await ask();
  if (matchMedia("(max-width: 820px)").matches) { // the answer is below the image
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    $("answer").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
}

async function pick(task, number) {
  const mine = ++turn;
  try {
    const file = await example(task.examples[number], `${task.name}-${number}`);
    if (mine !== turn) return;
    await take(file, `example ${number + 1} of ${task.name}`);
  } catch (problem) {
    if (mine !== turn) return;
    fail(problem);
  }
}

for (const input of [$("file"), $("camera")]) {
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });
}

let depth = 0; // dragenter and dragleave come once per element below the pointer
const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const lift = (change) => {
  depth = Math.max(0, change === 0 ? 0 : depth + change);
  $("drop").classList.toggle("over", depth > 0);
};
addEventListener("dragenter", (event) => { if (carries(event)) { event.preventDefault(); lift(1); } });
addEventListener("dragleave", (event) => { if (carries(event)) lift(-1); });
addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  lift(0);
  take(event.dataTransfer.files[0]);
});

addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  take(file, "the pasted image");
});

let typing = 0;
$("labels").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(ask, 700); });
$("task").addEventListener("change", ask);
$("top").addEventListener("change", ask);
$("again").addEventListener("click", ask);

// --- following the model --------------------------------------------------------------------

let timer = 0;
let looking = false;
let pause = EVERY;

async function look() {
  clearTimeout(timer);
  if (looking) return;
  looking = true;
  try {
    const now = await models();
    if (now.generation !== generation) await renew(now.generation);
    showState(stateText(tasks, generation), "up");
    pause = EVERY;
  } catch (problem) {
    showState(problem.code === 503 ? "getting ready" : "out of reach, trying again", "down");
    pause = Math.min(SLOWEST, pause * 1.6);
  } finally {
    looking = false;
    if (!document.hidden) timer = setTimeout(look, pause);
  }
}

async function renew(next) {
  const known = new Set(tasks.map((task) => task.name));
  const first = generation === null;
  tasks = await readTasks();
  const fresh = new Set(first ? [] : tasks.map((task) => task.name).filter((name) => !known.has(name)));
  generation = next;
  showTasks(tasks, fresh, pick);
  if (answer) showDomain(answer, tasks);
  drawSea();
  if (fresh.size) $("news").textContent = `Newly learned: ${[...fresh].join(", ")}.`;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) { pause = EVERY; look(); }
});

drawSea();
look();
