// What the page shows: answers, domains, problems. Texts from the server are only ever text.

import { address } from "./api.js";
import { isle, mark, percent, shares } from "./sea.js";

export const $ = (id) => document.getElementById(id);

const node = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
};

const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

/** The likeliest class, its neighbours as bars, and where the answer came from. */
export function showAnswer({ result, generation, asked, roundTrip }, tasks) {
  const classes = result.classes ?? [];
  $("best").textContent = classes[0]?.label ?? "no answer";
  $("best-share").textContent = classes.length ? percent(classes[0].probability) : "";
  $("bars").replaceChildren(...classes.map(({ label, probability }) => {
    const bar = node("span", { class: "bar", "aria-hidden": "true" }, node("span"));
    bar.firstChild.style.setProperty("--share", Math.min(1, Math.max(0, probability)));
    return node("li", {}, node("span", { class: "label" }, label), node("span", { class: "figure" }, percent(probability)), bar);
  }));
  showDomain({ result, asked }, tasks);
  showFacts(result, generation, roundTrip);
  $("result").hidden = $("facts").hidden = false;
  $("waiting").hidden = true;
}

/** Which domain answered; shown again when the list of domains has grown. */
export function showDomain({ result, asked }, tasks) {
  const index = tasks.findIndex((task) => task.name === result.task);
  const line = [];
  if (result.task) {
    line.push(asked.task ? "Answered as " : "Recognised as ",
      node("strong", { class: `chip ${isle(Math.max(0, index))}` }, index >= 0 ? mark(index) : null, result.task));
  } else line.push("No learned domain recognised");
  const [word, kind] = asked.task ? ["chosen by you", "given"]
    : result.unseen ? ["unseen", "unseen"] : ["seen", "seen"];
  line.push(" ", node("span", { class: `pill ${kind}`, id: "seen" }, word));
  if (result.task && !asked.task && Number.isFinite(result.task_confidence)) {
    line.push(" ", node("span", { class: "faint" }, `${percent(result.task_confidence)} sure`));
  }
  $("recognised").replaceChildren(...line);
  $("description").textContent = result.unseen && !asked.task
    ? "It looks like none of the learned domains, so the CLIP below them answers, with caution."
    : tasks[index]?.description ?? "";
}

function showFacts(result, generation, roundTrip) {
  const { total, ...parts } = result.milliseconds ?? {};
  const where = Object.entries(parts).filter(([, value]) => Number.isFinite(value))
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${milliseconds(value)}`).join(", ");
  const weights = (result.groups ?? []).map(({ task, weight }) => `${task} ${weight.toFixed(2)}`).join(", ");
  const facts = [
    ["Group weights", weights || "none"],
    ["Lambda", `${(result.lambda ?? 0).toFixed(2)}`],
    ["Answered in", Number.isFinite(total) ? milliseconds(total) : "–", where],
    ["Round trip", milliseconds(roundTrip)],
    ["Generation", String(generation)],
  ];
  $("facts").replaceChildren(...facts.map(([name, value, more]) => node("div", {},
    node("dt", {}, name), node("dd", {}, value, more ? node("small", {}, more) : null))));
}

/** An answer in a sentence, for those who listen. */
export function spoken({ result }) {
  const [best] = result.classes ?? [];
  const domain = result.task ? `domain ${result.task}` : "no learned domain";
  return best ? `${best.label}, ${percent(best.probability)}; ${domain}.` : "";
}

/** One sentence for those who do not see the picture of the sea. */
export function seaText(tasks, result) {
  if (!result) return tasks.length ? `${count(tasks.length, "island", "islands")}: ${tasks.map((task) => task.name).slice(0, 12).join(", ")}${tasks.length > 12 ? " …" : ""}.` : "No island yet: nothing was learned so far.";
  const part = shares(result);
  const parts = [...part.groups].filter(([, share]) => share > 0.005).sort((a, b) => b[1] - a[1])
    .map(([name, share]) => `${name} ${percent(share)}`);
  if (part.clip > 0.005) parts.push(`frozen CLIP ${percent(part.clip)}`);
  return `Who answered: ${parts.join(", ") || "nobody"}.`;
}

export function showProblem(problem, again) {
  $("problem").hidden = false;
  $("problem-text").textContent = problem.message;
  $("again").hidden = !again;
}

export function hideProblem() {
  $("problem").hidden = true;
}

/** The examples, menu and cards of all domains; `fresh` names those that just came. */
export function showTasks(tasks, fresh, pick) {
  const chosen = $("task").value;
  if (fresh.size) for (const old of document.querySelectorAll(".new")) old.remove();
  $("task").replaceChildren(node("option", { value: "" }, "let the model recognise it"),
    ...tasks.map((task) => node("option", { value: task.name }, task.name)));
  $("task").value = tasks.some((task) => task.name === chosen) ? chosen : "";
  const samples = tasks.filter((task) => task.examples.length).slice(-12);
  $("samples").hidden = samples.length === 0;
  keyed($("sample-list"), samples, (task) => node("li", {}, thumbnail(task, 0, pick)));
  keyed($("tasks"), tasks, (task, index) => card(task, index, fresh.has(task.name), pick));
  $("islands-hint").textContent = tasks.length
    ? "The list grows by itself whenever the model has learned another one."
    : "None yet. The first one appears here as soon as the model has learned it.";
}

// Leaves what is there in its place: nothing loses the focus or is loaded again when the list grows.
function keyed(list, tasks, make) {
  const there = new Map([...list.children].map((item) => [item.dataset.key, item]));
  const keys = tasks.map((task, index) => JSON.stringify([task, index % 8]));
  for (const [key, item] of there) if (!keys.includes(key)) item.remove();
  keys.forEach((key, index) => {
    const item = there.get(key) ?? make(tasks[index], index);
    item.dataset.key = key;
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
  });
}

function thumbnail(task, number, pick) {
  const source = address(task.examples[number]);
  const button = node("button", { type: "button", class: "thumb", title: `Try an example of ${task.name}` });
  if (source) button.append(node("img", { src: source.href, alt: `example ${number + 1} of ${task.name}`, loading: "lazy", width: 56, height: 56 }));
  button.addEventListener("click", () => pick(task, number));
  return button;
}

function card(task, index, fresh, pick) {
  const title = node("h3", {}, mark(index), node("span", {}, task.name), fresh ? node("em", { class: "new" }, "new") : null);
  const thumbs = node("div", { class: "thumbs" }, ...task.examples.slice(0, 6).map((_, number) => thumbnail(task, number, pick)));
  const classes = node("details", {}, node("summary", {}, count(task.classes.length, "class", "classes")),
    node("p", { class: "faint" }, task.classes.join(", ")));
  return node("li", { class: `task ${isle(index)}${fresh ? " fresh" : ""}` }, title,
    task.description ? node("p", { class: "about" }, task.description) : null,
    task.neighbours?.length ? node("p", { class: "faint bridged" }, `bridged to ${task.neighbours.join(", ")}`) : null,
    task.examples.length ? thumbs : null,
    node("div", { class: "below" }, classes, lineage(task)));
}

function lineage(task) {
  if (!task.lineage) return null;
  const url = address(task.lineage); // the server's own, also below a prefix
  if (!url) return null;
  return node("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", "aria-label": `lineage of ${task.name}` }, "lineage");
}

export function showState(text, kind) {
  $("state").className = `state ${kind}`;
  $("state-text").textContent = text;
}

export const stateText = (tasks, generation) =>
  `${count(tasks.length, "island", "islands")} · generation ${generation}`;
