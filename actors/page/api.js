// The server's HTTP interface, as far as the page needs it. Every address is relative to the page.

const LARGEST = 4 * 1024 * 1024; // bytes; larger pictures are shrunk before they are sent
const EDGE = 1600; // px, of a shrunk picture; models look at far fewer

/** What went wrong, in one line for people. `code` is the HTTP status, 0 when none arrived. */
export class Problem extends Error {
  constructor(message, code = 0, retryAfter = 0) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** An absolute address for a path of the server, also below a prefix; null for another origin. */
export function address(path) {
  const url = new URL(String(path).replace(/^\/(?!\/)/, ""), document.baseURI);
  return url.origin === location.origin ? url : null;
}

async function call(path, { seconds = 30, signal, ...options } = {}) {
  const url = address(path);
  if (!url) throw new Problem("That is an address of another server.");
  const limit = AbortSignal.timeout(seconds * 1000);
  let reply;
  try {
    reply = await fetch(url, {
      ...options, signal: signal ? AbortSignal.any([signal, limit]) : limit, cache: "no-store",
    });
  } catch (reason) {
    if (signal?.aborted) throw reason;
    throw new Problem(limit.aborted
      ? "The server took too long to answer. Please try again."
      : "The server cannot be reached. Please check the connection and try again.");
  }
  if (reply.ok) return reply;
  const wait = Number(reply.headers.get("retry-after")) || 0;
  const said = await reply.json().then((body) => body?.error?.message, () => null);
  throw new Problem(sentence(said || `The server answered with status ${reply.status}.`), reply.status, wait);
}

function sentence(text) {
  const line = String(text).split("\n")[0].trim();
  return line.charAt(0).toUpperCase() + line.slice(1) + (/[.!?]$/.test(line) ? "" : ".");
}

const json = async (reply) => {
  try {
    return await reply.json();
  } catch {
    throw new Problem("The server's answer could not be read. Please try again.");
  }
};

/** {generation, manifest, backbone, history}: small, asked for often. */
export const models = () => call("v1/models", { seconds: 8 }).then(json);

/** The learned domains, in the order in which they were learned. */
export async function tasks() {
  const body = await call("v1/tasks", { seconds: 15 }).then(json);
  return (Array.isArray(body) ? body : body.tasks ?? []).map((task) => ({
    classes: [], examples: [], description: "", ...task,
  }));
}

/** Classify one image; answers {generation, result}. */
export async function classify(file, { task, labels, top, signal }) {
  const form = new FormData();
  form.append("image", file, file.name || "image");
  if (task) form.append("task", task);
  if (labels.length) form.append("labels", JSON.stringify(labels));
  form.append("top_k", String(top));
  const body = await call("v1/classify", { method: "POST", body: form, signal }).then(json);
  if (!body?.results?.length) throw new Problem("The server's answer could not be read. Please try again.");
  return { generation: body.generation, result: body.results[0] };
}

/** An example of a domain as a file. */
export async function example(path, name) {
  const blob = await call(path, { seconds: 15 }).then((reply) => reply.blob());
  return new File([blob], name, { type: blob.type });
}

/** Pictures of many megabytes are shrunk here: phones on slow lines answer faster. */
export async function slim(file) {
  if (file.size <= LARGEST || !self.createImageBitmap) return file;
  try {
    const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
    const scale = Math.min(1, EDGE / Math.max(picture.width, picture.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    const small = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    return small && small.size < file.size ? new File([small], "image.jpg", { type: "image/jpeg" }) : file;
  } catch {
    return file; // not for this browser; the server says what it thinks of it
  }
}
