// The dashboard: sessions, their events, buttons and sliders. Everything goes to the page's own origin.

import { Lines, Maps, Rows, Text, forgetColours, short } from "./draw.js";

const views = new Map();
const root = document.getElementById("views");
let about = null;

async function call(method, path, body) {
  const options = { method, headers: {} };
  if (method === "POST") {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body ?? {});
  }
  const response = await fetch(`/api/${path}`, options);
  const answer = await response.json().catch(() => ({ error: `${method} ${path}: ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function notice(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  place.hidden = !text;
}

/** Runs what a button asks for, and says so if it fails. */
async function attempt(action) {
  try {
    notice("");
    return await action();
  } catch (error) {
    notice(error.message);
    return undefined;
  }
}

/** One slider: its place on the track, the value sent, and how it is told. */
const SLIDERS = [
  { name: "eta_scale", label: "η · writing strength", min: -2, max: 1, step: 0.02, rest: 0, value: (x) => 10 ** x,
    at: (value) => Math.log10(value), tell: (value) => `×${short(value)} → η ${short(Math.min(1, value * about.eta))}` },
  { name: "decay_scale", label: "λ · forgetting", min: -3, max: 3, step: 0.02, rest: 0, value: (x) => 10 ** x,
    at: (value) => Math.log10(value), tell: (value) => `×${short(value)} → λ ${span(about.decay.map((rate) => 1 - (1 - rate) ** value))}` },
  { name: "write_threshold", label: "Write threshold", min: 0, max: 1, step: 0.01, rest: null, value: (x) => x,
    at: (value) => value ?? about.threshold, tell: (value) => (value ?? about.threshold) > 0
      ? `writes below ${short(value ?? about.threshold)} are skipped` : "off" },
  { name: "speed", label: "Speed", min: 0, max: 4, step: 0.05, rest: null, value: (x) => (x >= 4 ? null : Math.round(10 ** x)),
    at: (value) => (value === null ? 4 : Math.log10(value)), tell: (value) => (value === null ? "as fast as it goes" : `${short(value)} steps/s`) },
];

function span(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? short(low, 2) : `${short(low, 2)} … ${short(high, 2)}`;
}

class View {
  constructor(summary) {
    this.id = summary.id;
    this.parent = summary.parent;
    this.update = null;
    this.dirty = false;
    this.drawnLines = 0;
    this.held = new Map();
    this.root = document.getElementById("view").content.firstElementChild.cloneNode(true);
    this.root.dataset.session = this.id;
    const part = (name) => this.root.querySelector(`.${name}`);
    this.part = part;
    part("bar").querySelector("h2").textContent = this.parent ? "Fork" : "Stream";
    this.maps = new Maps(part("maps"));
    this.lines = new Lines(part("chart"), about.kind === "text" ? "bits per byte" : "error, in deviations");
    if (about.kind === "text") {
      this.text = new Text(part("passage"));
      part("legend").innerHTML = "importance <i class='i1'></i><i class='i3'></i><i class='i5'></i><i class='surprising'></i> surprising";
      part("legend").title = "How strongly each token is written, from not at all to full strength; underlined: 8 bits of surprise or more";
    } else {
      this.rows = new Rows(part("rows"));
      part("passage").hidden = true;
      part("rows").hidden = false;
      part("push").hidden = true;
      part("legend").textContent = "dotted: what was expected";
      part("rows").setAttribute("role", "img");
      part("rows").setAttribute("aria-label", "Rows as they are read, beside what was expected of them");
    }
    part("memory").querySelector("h3").textContent = about.layers.length > 1 ? "Memories" : "Memory";
    part("frozen").closest("label").hidden = !about.settings.includes("frozen");
    part("trained").hidden = !about.settings.length;
    part("save").href = `/api/sessions/${this.id}/state`;
    part("close").hidden = !this.parent;
    this.#buttons();
    this.#sliders();
    this.#follow();
  }

  path(rest) { return `sessions/${this.id}/${rest}`; }

  async pause() { await attempt(() => call("POST", this.path("control"), { pause: this.update?.status !== "paused" && this.update?.status !== "failed" })); }
  async checkpoint() { await attempt(() => call("POST", this.path("checkpoint"))); }
  async rollback() {
    if (!this.part("rollback").disabled) await attempt(() => call("POST", this.path("rollback"), { name: this.part("marks").value }));
  }
  async fork() {
    if (this.part("fork").disabled) return;
    const made = await attempt(() => call("POST", this.path("fork")));
    if (made) show(made);
  }

  #buttons() {
    const { part } = this;
    for (const name of ["pause", "checkpoint", "rollback", "fork"]) part(name).addEventListener("click", () => this[name]());
    part("close").addEventListener("click", async () => {
      await attempt(() => call("DELETE", `sessions/${this.id}`));
      drop(this.id);
    });
    part("trained").addEventListener("click", () => {
      this.held.clear();
      attempt(() => call("POST", this.path("control"), { plasticity: null }));
    });
    part("frozen").addEventListener("change", (event) => this.#send({ plasticity: { frozen: event.target.checked } }));
    part("push").addEventListener("submit", async (event) => {
      event.preventDefault();
      const field = event.target.elements.text;
      if (!field.value) return;
      if (await attempt(() => call("POST", this.path("push"), { text: field.value }))) field.value = "";
    });
  }

  #sliders() {
    const shown = SLIDERS.filter((kind) => kind.name === "speed" || about.settings.includes(kind.name));
    this.sliders = shown.map((kind) => {
      const element = document.getElementById("slider").content.firstElementChild.cloneNode(true);
      const [label, output, input] = element.children;
      input.id = `${kind.name}-${this.id}`;
      input.dataset.setting = kind.name;
      Object.assign(input, { min: kind.min, max: kind.max, step: kind.step });
      label.textContent = kind.label;
      label.htmlFor = output.htmlFor = input.id;
      input.addEventListener("input", () => {
        const value = kind.value(Number(input.value));
        this.#tell(kind, input, output, value);
        this.held.set(kind.name, performance.now());
        this.#send(kind.name === "speed" ? { speed: value } : { plasticity: { [kind.name]: value } });
      });
      this.part("sliders").append(element);
      return { kind, input, output };
    });
  }

  #tell(kind, input, output, value) {
    output.textContent = kind.tell(value);
    input.setAttribute("aria-valuetext", output.textContent);
  }

  /** Sends the latest of quickly following changes, one request at a time. */
  async #send(change) {
    this.wanted = { ...this.wanted, ...change, plasticity: change.plasticity ? { ...this.wanted?.plasticity, ...change.plasticity } : this.wanted?.plasticity };
    if (this.wanted.plasticity === undefined) delete this.wanted.plasticity;
    if (this.sending) return;
    this.sending = true;
    while (this.wanted) {
      const body = this.wanted;
      this.wanted = null;
      await attempt(() => call("POST", this.path("control"), body));
    }
    this.sending = false;
  }

  #follow() {
    this.events = new EventSource(`/api/sessions/${this.id}/events`);
    this.events.addEventListener("hello", (event) => {
      const hello = JSON.parse(event.data);
      this.lines.start(hello.trail, hello.parent !== null);
      this.#take(hello.update);
    });
    this.events.addEventListener("update", (event) => {
      const update = JSON.parse(event.data);
      if (update.steps) this.lines.add(update.point);
      this.#take(update);
    });
    this.events.addEventListener("closed", () => { this.events.close(); this.#status("ended"); });
    this.events.addEventListener("error", () => {
      this.#status("connecting");
      if (this.events.readyState !== EventSource.CLOSED) return;
      // Refused: the session is gone, or somebody else's. A lost connection is taken up again by the browser itself.
      notice("This session is no longer there; load the page again for a new one.");
    });
  }

  #take(update) {
    this.update = update;
    this.dirty = true;
    if (this.text) this.text.add(update.pieces, update.left_out);
    if (this.rows) this.rows.add(update.position, update.pieces, update.columns);
  }

  #status(status) {
    const place = this.part("status"), text = status === "connecting" ? "reconnecting…" : status;
    place.dataset.status = status;
    if (place.textContent !== text) place.textContent = text;
  }

  draw(now) {
    if (!this.dirty) return;
    this.dirty = false;
    const { update, part } = this;
    this.#status(update.status);
    const unit = about.kind === "text" ? "tokens" : "rows";
    part("facts").textContent = `${update.position.toLocaleString("en")} ${unit} · ${Math.round(update.pace).toLocaleString("en")}/s`
      + (update.missed ? ` · missed ${update.missed.toLocaleString("en")}` : "");
    part("message").textContent = update.message;
    part("message").hidden = !update.message;
    const isHalted = update.status === "paused" || update.status === "failed";
    part("pause").textContent = isHalted ? "Go on" : "Pause";
    part("pause").setAttribute("aria-pressed", String(isHalted));
    this.#marks(update.checkpoints);
    for (const { kind, input, output } of this.sliders) {
      // What a hand has just set is not moved by an update that was made before it.
      if (performance.now() - (this.held.get(kind.name) ?? -Infinity) < 600) continue;
      const value = kind.name === "speed" ? update.speed : update.plasticity[kind.name];
      const at = String(Math.min(kind.max, Math.max(kind.min, kind.at(value))));
      if (Math.abs(Number(input.value) - Number(at)) >= kind.step / 2) input.value = at;
      this.#tell(kind, input, output, value);
    }
    part("frozen").checked = update.plasticity.frozen;
    this.maps.draw(update.layers);
    if (now - this.drawnText > 90 || !this.drawnText) { this.drawnText = now; this.text?.draw(); } else this.dirty = true;
    if (now - this.drawnLines > 250 || !this.drawnLines) {
      this.drawnLines = now;
      this.lines.draw(update.layers);
      this.rows?.draw();
    } else this.dirty = true;
  }

  #marks(names) {
    const select = this.part("marks");
    if (select.childElementCount === names.length && [...select.options].every((option, index) => option.value === names[index])) return;
    select.replaceChildren(...names.map((name) => new Option(name.replace("checkpoint ", "No. "), name)));
    select.selectedIndex = names.length - 1;
    select.disabled = this.part("rollback").disabled = !names.length;
  }

  redraw() { this.maps.redraw(); this.drawnLines = 0; this.dirty = this.update !== null; }

  close() { this.events.close(); this.root.remove(); if (window.Plotly) window.Plotly.purge(this.part("chart")); }
}

function show(summary) {
  const view = new View(summary);
  views.set(view.id, view);
  root.append(view.root);
  arrange();
}

function drop(id) {
  views.get(id)?.close();
  views.delete(id);
  arrange();
}

function arrange() {
  root.classList.toggle("two", views.size > 1);
  for (const view of views.values()) {
    view.part("fork").disabled = views.size > 1;
    view.part("fork").title = views.size > 1 ? "Close the fork first" : "A second stream from this very state";
    view.redraw();
  }
  window.dispatchEvent(new Event("resize"));
}

function frame(now) {
  for (const view of views.values()) view.draw(now);
  const fork = [...views.values()].find((view) => view.parent && views.has(view.parent));
  const place = document.getElementById("apart"), distance = fork?.update?.distance;
  place.hidden = distance === null || distance === undefined;
  if (!place.hidden) place.textContent = `The two memories differ by ${short(100 * distance)} %`;
  requestAnimationFrame(frame);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input[type=text], select")) return;
  const action = { p: "pause", c: "checkpoint", r: "rollback", f: "fork" }[event.key.toLowerCase()];
  const chosen = event.target.closest(".view");
  const view = views.get(chosen?.dataset.session) ?? views.values().next().value;
  if (action && view) view[action]();
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  forgetColours();
  for (const view of views.values()) view.redraw();
});

async function begin() {
  about = await call("GET", "about");
  document.getElementById("about").textContent = `${about.model.replaceAll(" × ", "\u00a0×\u00a0")} · ${about.source}`;
  const { sessions } = await call("GET", "sessions");
  const first = sessions.findLast((session) => !session.parent) ?? await call("POST", "sessions");
  show(first);
  const second = sessions.findLast((session) => session.parent === first.id);
  if (second) show(second);
  requestAnimationFrame(frame);
}

attempt(begin);
