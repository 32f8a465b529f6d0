// The picture of the sea: one island per learned domain, and how much each had in the answer.

const NS = "http://www.w3.org/2000/svg";
const SHORE = "M-58 12C-64-4-40-16-24-22-10-40 14-38 24-24 44-24 66-8 58 10 50 26-48 28-58 12z";
const FLAKE = "M0-9V9M-7.8-4.5 7.8 4.5M-7.8 4.5 7.8-4.5M-3-8 0-5 3-8M-3 8 0 5 3 8" +
  "M-8.4-1.4-4.3-2.5-5.4-6.6M8.4 1.4 4.3 2.5 5.4 6.6M-8.4 1.4-4.3 2.5-5.4 6.6M8.4-1.4 4.3-2.5 5.4-6.6";
const SHOWN = 40; // more islands would be dots; those that answered are always among them
const FOOT = 34; // px below the islands, for frozen CLIP

const make = (name, attributes = {}, text = "") => {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
};

/** Colour class of the i-th domain. */
export const isle = (index) => `isle-${index % 8}`;

/** A small outline of an island, for lists. */
export function mark(index) {
  const svg = make("svg", { viewBox: "-66 -42 132 74", class: `mark ${isle(index)}`, "aria-hidden": "true" });
  svg.append(make("path", { d: SHORE }));
  return svg;
}

export const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 1) return "< 1 %";
  return `${value > 99 && value < 100 ? "> 99" : Math.round(value)} %`;
};

/**
 * Shares of an answer that add up to 1: frozen CLIP's and each group's. Where frozen CLIP has a part
 * that is 1 - lambda; a recognised image is else its groups' alone, an unseen one frozen CLIP's.
 */
export function shares(result) {
  const groups = result.groups ?? [];
  const total = groups.reduce((sum, group) => sum + Math.max(0, group.weight), 0);
  const lambda = Math.min(1, Math.max(0, result.lambda ?? 0));
  const theirs = total > 0 ? lambda || (result.unseen ? 0 : 1) : 0;
  return {
    clip: result.refused ? 0 : 1 - theirs,
    groups: new Map(groups.map((group) => [group.task, total > 0 ? (theirs * Math.max(0, group.weight)) / total : 0])),
  };
}

// A number in [0, 1) from a name: islands keep their place when the page is loaded again.
function chance(name, salt) {
  let hash = 2166136261 ^ salt;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  hash = Math.imul(hash ^ (hash >>> 16), 2246822507);
  hash = Math.imul(hash ^ (hash >>> 13), 3266489909);
  return ((hash ^ (hash >>> 16)) >>> 0) / 4294967296;
}

// From the group that had most in the answer to the others.
function answering(shown) {
  const [first, ...others] = shown.filter((one) => one.share > 0.005).sort((a, b) => b.share - a.share);
  return others.slice(0, 4).map((one) => [first.name, one.name]);
}

// From each group to the earlier ones that it was learned with.
function borrowing(shown) {
  const there = new Set(shown.map((one) => one.name));
  return shown.flatMap((one) => (one.neighbours ?? []).filter((name) => there.has(name)).map((name) => [one.name, name]));
}

export class Sea {
  constructor(svg) {
    this.svg = svg;
    this.tasks = [];
    this.result = null;
    this.isles = new Map();
    this.waves = make("g", { class: "waves" });
    this.bridges = make("g", { class: "bridges" });
    this.land = make("g");
    this.clip = make("g", { class: "clip" });
    this.flake = make("path", { d: FLAKE });
    this.clipText = make("text", { x: 18, y: 5 });
    this.clip.append(this.flake, this.clipText);
    svg.append(this.waves, this.bridges, this.land, this.clip);
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** Show these domains ({name, neighbours} in order) and an answer's result, or none. */
  show(tasks, result) {
    this.tasks = tasks;
    this.result = result;
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth || 320;
    const part = this.result ? shares(this.result) : null;
    const shown = this.tasks.map(({ name, neighbours }, index) => ({
      name, index, neighbours, share: part?.groups.get(name) ?? 0,
    }))
      .filter((one) => one.index < SHOWN || one.share > 0);
    const inOneRow = shown.length <= Math.floor(width / 128);
    const most = inOneRow ? shown.length : Math.min(Math.floor(width / 104), Math.ceil(Math.sqrt(shown.length * 2)));
    const rows = Math.max(1, Math.ceil(shown.length / Math.max(1, most)));
    const columns = Math.max(1, Math.ceil(shown.length / rows));
    const cell = { w: width / columns, h: Math.max(62, Math.min(136, 210 / rows)) };
    const height = Math.round(rows * cell.h + FOOT);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.style.height = `${height}px`;
    this.drawWaves(width, height);
    const places = new Map();
    const size = Math.min(cell.w / 162, cell.h / 90, 1);
    shown.forEach((one, place) => {
      const row = Math.floor(place / columns);
      const inRow = row === rows - 1 ? shown.length - row * columns : columns;
      const left = (width - inRow * cell.w) / 2;
      const free = { x: cell.w - 152 * size, y: cell.h - 86 * size };
      places.set(one.name, {
        x: left + (place - row * columns + 0.5) * cell.w + (chance(one.name, 1) - 0.5) * Math.max(0, free.x),
        y: (row + 0.5) * cell.h + (chance(one.name, 2) - 0.5) * Math.max(0, free.y),
      });
    });
    for (const [name, node] of this.isles) {
      if (!places.has(name)) { node.remove(); this.isles.delete(name); }
    }
    for (const one of shown) this.place(one, places.get(one.name), size, part);
    this.drawBridges(part ? answering(shown) : borrowing(shown), places);
    this.clip.style.transform = `translate(22px, ${height - 20}px)`;
    const answers = Boolean(part && part.clip > 0.005);
    this.clip.classList.toggle("answers", answers);
    this.clipText.textContent = answers ? `frozen CLIP ${percent(part.clip)}` : "frozen CLIP, below them all";
  }

  place({ name, index, share }, at, size, part) {
    let node = this.isles.get(name);
    if (!node) {
      node = make("g", { class: `island ${isle(index)}` });
      const land = make("g", { class: "land" });
      land.append(make("path", { class: "beach", d: SHORE, transform: "scale(1.12 1.16)" }), make("path", { class: "ground", d: SHORE }));
      node.append(land, make("text", { class: "name" }), make("text", { class: "share" }));
      this.isles.set(name, node);
      this.land.append(node);
    }
    node.setAttribute("class", `island ${isle(index)}${part ? (share > 0.005 ? " answers" : " rests") : ""}`);
    const scale = size * (part && share > 0.005 ? 0.9 + 0.2 * share : 0.86);
    node.style.transform = `translate(${at.x.toFixed(1)}px, ${at.y.toFixed(1)}px)`;
    node.children[0].style.transform = `scale(${scale.toFixed(3)})`;
    const longest = Math.max(6, Math.floor((size < 0.75 ? 15.5 : 14) * size)); // letters that fit
    node.style.setProperty("--type", size < 0.75 ? "11px" : "12.5px");
    node.children[1].textContent = name.length > longest ? `${name.slice(0, longest - 1)}…` : name;
    const both = part && share > 0.005;
    node.children[1].setAttribute("y", both ? -4 : 2);
    node.children[2].setAttribute("y", 12);
    node.children[2].textContent = both ? percent(share) : "";
  }

  drawBridges(pairs, places) {
    this.bridges.replaceChildren(...pairs.map((pair) => {
      const [a, b] = pair.map((name) => places.get(name));
      const lift = 14 + Math.abs(a.x - b.x) / 12;
      return make("path", { d: `M${a.x} ${a.y}Q${(a.x + b.x) / 2} ${(a.y + b.y) / 2 - lift} ${b.x} ${b.y}` });
    }));
  }

  drawWaves(width, height) {
    const wave = (x, y) => `M${x.toFixed(0)} ${y.toFixed(0)}q9-7 18 0t18 0`;
    const across = Math.max(1, Math.round(width / 130));
    const down = Math.max(1, Math.round(height / 74));
    const spots = Array.from({ length: across * down }, (_, i) => wave(
      ((i % across) + 0.7 * chance("wave", i)) * (width / across),
      (Math.floor(i / across) + 0.2 + 0.6 * chance("crest", i)) * (height / down)));
    this.waves.replaceChildren(make("path", { d: spots.join("") }));
  }
}
