// The HTTP interface as openapi.json states it. All that is shown is text, never HTML.

const at = (path) => new URL(path.replace(/^\//, ""), document.baseURI);
const $ = (id) => document.getElementById(id);

function make(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children.filter(Boolean));
  return node;
}

/** A schema in a few words: type, what it is a list of, and its limits. */
function kind(schema, all) {
  if (!schema) return "anything";
  if (schema.$ref) return kind(resolve(schema, all), all);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((one) => kind(one, all)).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const limits = [];
  if (schema.minimum !== undefined) limits.push(`at least ${schema.minimum}`);
  if (schema.maximum !== undefined) limits.push(`at most ${schema.maximum}`);
  if (schema.minItems) limits.push(`at least ${schema.minItems}`);
  if (schema.maxItems) limits.push(`at most ${schema.maxItems}`);
  if (schema.default !== undefined && schema.default !== null) {
    limits.push(`${JSON.stringify(schema.default)} unless given`);
  }
  let word = schema.format === "binary" ? "file" : schema.type ?? "anything";
  if (word === "array") word = `list of ${kind(schema.items, all)}`;
  return word + (limits.length ? `, ${limits.join(", ")}` : "");
}

function resolve(schema, all) {
  const parts = schema?.$ref?.startsWith("#/") ? schema.$ref.slice(2).split("/") : null;
  return parts ? parts.reduce((found, part) => found?.[part], all) ?? {} : schema ?? {};
}

/** Rows of a schema's properties, the inner ones as `outer.inner`. */
function fields(schema, all, before = "", depth = 0) {
  const whole = resolve(schema, all);
  const inner = whole.type === "array" ? resolve(whole.items, all) : whole;
  return Object.entries(inner.properties ?? {}).flatMap(([name, value]) => {
    const label = before + name;
    const row = [label, kind(value, all), value.description ?? "", inner.required?.includes(name)];
    const list = resolve(value, all).type === "array" ? "[]." : ".";
    return [row, ...(depth < 4 ? fields(value, all, label + list, depth + 1) : [])];
  });
}

function table(rows) {
  const body = make("tbody");
  for (const [name, type, about, must] of rows) {
    const head = make("th", { scope: "row", text: name });
    if (must) head.append(" ", make("span", { class: "must", text: "needed" }));
    body.append(make("tr", {}, head, make("td", { class: "kind", text: type }), make("td", { text: about })));
  }
  return make("div", { class: "wide" }, make("table", {}, body));
}

const section = (title, ...children) => make("section", {}, make("h4", { text: title }), ...children);

/** The call as a command; what a person has to fill in is in capitals. */
function command(verb, path, operation) {
  const url = at(path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase()));
  const parts = ["curl"];
  if (path.includes("/admin/")) parts.push('-H "Authorization: Bearer $ARCHIPELAGO_ADMIN_TOKEN"');
  const bodies = operation.requestBody?.content ?? {};
  if (bodies["multipart/form-data"]) parts.push("-F image=@PICTURE.png");
  else if (bodies["application/json"]) {
    const known = fields(bodies["application/json"].schema, documentOf);
    const given = known.filter(([name]) => !/[.[]/.test(name)).map(([name, type]) =>
      `"${name}": ${/^integer/.test(type) ? 1 : /^boolean/.test(type) ? "false" : /^list/.test(type) ? "[]" : '"..."'}`);
    parts.push("-H 'Content-Type: application/json'", `-d '{${given.join(", ")}}'`);
  } else if (verb !== "get") parts.push(`-X ${verb.toUpperCase()}`);
  return [...parts, url.href].join(" \\\n  ");
}

/** A form that sends a GET and shows what came back. */
function trial(path, parameters) {
  const form = make("form", { class: "try" });
  const given = parameters.filter((one) => one.in === "path" || one.in === "query").map((one) => {
    const id = `${path}-${one.name}`;
    const input = make("input", { id, name: one.name, autocomplete: "off", spellcheck: "false" });
    if (one.required) input.required = true;
    form.append(make("p", {}, make("label", { for: id, text: one.name }), input));
    return [one, input];
  });
  const button = make("button", { class: "button", text: "Send" });
  const said = make("div", { role: "status" });
  form.append(button, said);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    let filled = path;
    const query = new URLSearchParams();
    for (const [one, input] of given) {
      if (one.in === "path") filled = filled.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(one.name, input.value);
    }
    const url = at(filled);
    url.search = query;
    button.disabled = true;
    try {
      const clock = performance.now();
      const reply = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(30_000) });
      said.replaceChildren(await shown(reply, clock));
    } catch {
      said.replaceChildren(make("p", { text: "The server does not answer." }));
    }
    button.disabled = false;
  });
  return form;
}

async function shown(reply, clock) {
  const type = reply.headers.get("content-type") ?? "";
  const body = type.startsWith("image/")
    ? make("img", { alt: "the answer", src: URL.createObjectURL(await reply.blob()) })
    : make("pre", { tabindex: "0", text: pretty(await reply.text()) });
  const spent = Math.round(performance.now() - clock);
  return make("div", {}, make("p", { class: "faint", text: `${reply.status}, ${spent} ms` }), body);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function card(path, verb, operation) {
  const parameters = operation.parameters ?? [];
  const [first, ...rest] = (operation.description ?? operation.summary ?? "").split("\n\n");
  const summary = make("summary", {},
    make("span", { class: verb === "get" ? "verb" : "verb writes", text: verb.toUpperCase() }),
    make("span", { class: "path", text: path }), make("span", { class: "says", text: first }));
  const inside = make("div", { class: "inside" });
  for (const more of rest) inside.append(make("p", { text: more }));
  if (parameters.length) {
    const rows = parameters.map((one) => [
      one.name, `${kind(one.schema, documentOf)}, in the ${one.in}`, one.description ?? "", one.required]);
    inside.append(section("Parameters", table(rows)));
  }
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    inside.append(section(`Body, ${type}`, table(fields(schema, documentOf))));
  }
  const answers = Object.entries(operation.responses ?? {}).map(([code, answer]) => {
    const types = Object.keys(answer.content ?? {}).join(", ");
    return [code, types || "no body", answer.description ?? ""];
  });
  inside.append(section("Answers", table(answers)));
  const good = fields(operation.responses?.["200"]?.content?.["application/json"]?.schema, documentOf);
  if (good.length) inside.append(section("Body of the answer", table(good.map((row) => row.slice(0, 3)))));
  inside.append(section("From a shell", make("pre", { tabindex: "0", text: command(verb, path, operation) })));
  if (verb === "get") inside.append(section("Try it", trial(path, parameters)));
  return make("details", { class: "call-card" }, summary, inside);
}

let documentOf;

async function show() {
  const reply = await fetch(at("openapi.json"), { cache: "no-store" });
  if (!reply.ok) throw new Error(`openapi.json: status ${reply.status}`);
  documentOf = await reply.json();
  $("summary").textContent = documentOf.info?.summary ?? "";
  const groups = new Map();
  for (const [path, operations] of Object.entries(documentOf.paths ?? {})) {
    for (const [verb, operation] of Object.entries(operations)) {
      const name = operation.tags?.[0] ?? "other";
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(card(path, verb, operation));
    }
  }
  for (const [name, cards] of groups) {
    const id = name.replace(/\W+/g, "-");
    $("jump").append(make("li", {}, make("a", { href: `#${id}`, text: name })));
    $("groups").append(make("section", { class: "calls", id }, make("h2", { text: name }), ...cards));
  }
}

show().catch((reason) => {
  $("problem").hidden = false;
  $("problem").textContent = `The description of the interface cannot be read (${reason.message}).`;
});
