"use strict";
// Draws the figures of a report and lets its text be asked. All data lie in the page; nothing is fetched.
(() => {
  const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
  const make = (tag, name = "", text = "") => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text) node.textContent = text;
    return node;
  };
  const whole = (value) => value.toLocaleString("en");

  // Figures

  const figures = parsed("figures");
  const themes = parsed("themes");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

  function draw(place) {
    const drawing = structuredClone(figures[place.dataset.figure][Number(place.dataset.number || 0)].drawing);
    const { axis, coloraxis, coloraxis2, ...theme } = themes[dark.matches ? "dark" : "light"];
    const layout = { ...drawing.layout, ...theme };
    for (const name of Object.keys(layout)) if (/^[xy]axis\d*$/.test(name)) layout[name] = { ...axis, ...layout[name] };
    for (const [name, scale] of Object.entries({ coloraxis, coloraxis2 }))
      if (layout[name]) layout[name] = { ...scale, ...layout[name] };
    if (narrow.matches) {
      if (layout.yaxis.scaleanchor) layout.height = Math.min(layout.height, place.clientWidth + 70);
      for (const name of ["xaxis", "yaxis"]) if (layout[name].nticks > 8) layout[name].nticks = 8;
    }
    Plotly.react(place, drawing.data, layout, { ...options, displayModeBar: narrow.matches ? false : "hover" });
  }

  const places = [...document.querySelectorAll(".plot")];
  const drawAll = () => places.forEach(draw);
  for (const select of document.querySelectorAll("select[data-for]"))
    select.addEventListener("change", () => {
      for (const name of select.dataset.for.split(" ")) {
        const place = document.querySelector(`.plot[data-figure="${name}"]`);
        place.dataset.number = select.value;
        draw(place);
      }
    });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();

  // The text

  const text = document.getElementById("text");
  if (!text) return;
  const reading = parsed("reading");
  const section = document.getElementById("the-text");
  const panel = document.getElementById("sources");
  const spans = [...text.querySelectorAll("span")];
  const first = reading.first;
  let layer = 0;
  let pinned = null;
  let shown = null;

  function mark() {
    const name = document.querySelector("input[name=mark]:checked").value;
    const values = name === "importance" ? reading.importance[layer] : name === "surprise" ? reading.surprise : [];
    const known = values.filter((value) => value !== null).sort((a, b) => a - b);
    const at = (share) => (known.length ? known[Math.min(known.length - 1, Math.floor(share * known.length))] : 0);
    const low = name === "surprise" ? 0 : at(0.02);
    const high = Math.max(at(0.98), low + 1e-6);
    spans.forEach((span, index) => {
      const value = values[index];
      const share = value === null || value === undefined ? 0 : Math.min(1, Math.max(0, (value - low) / (high - low)));
      span.style.setProperty("--a", share.toFixed(3));
      span.classList.toggle("skipped", name === "importance" && reading.written[layer][index] === 0);
    });
    section.classList.toggle("surprise", name === "surprise");
    const scale = section.querySelector(".scale");
    scale.style.visibility = name === "none" ? "hidden" : "visible";
    const unit = name === "surprise" ? " bits" : "";
    scale.firstElementChild.textContent = low.toFixed(name === "surprise" ? 0 : 2);
    scale.lastElementChild.textContent = (known.length && known.at(-1) > high ? "≥ " : "") + high.toFixed(name === "surprise" ? 1 : 2) + unit;
  }

  const visible = (piece) => piece.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const pieces = (from, to) => visible(spans.slice(Math.max(0, from), Math.max(0, to)).map((span) => span.textContent).join(""));

  function around(position) {
    const index = position - first;
    if (index >= 0) return [pieces(index - 4, index), pieces(index, index + 1), pieces(index + 1, index + 5)];
    return (reading.snippets[position] || ["", "", ""]).map(visible);
  }

  const percent = (share) => (share < 0 ? "−" : "") + (Math.abs(share) < 0.0095 ? "< 1" : Math.round(100 * Math.abs(share))) + " %";

  function sourcesOf(index) {
    const { positions, weights } = reading.sources[layer];
    return positions[index].map((position, number) => ({ position, share: weights[index][number] }));
  }

  function show(index, focus = false) {
    for (const span of text.querySelectorAll(".source, .chosen")) span.classList.remove("source", "minus", "chosen");
    shown = index;
    text.classList.toggle("asked", index !== null);
    if (index === null) return;
    const chosen = spans[index];
    const found = sourcesOf(index);
    const most = Math.max(1e-9, ...found.map(({ share }) => Math.abs(share)));
    for (const { position, share } of found) {
      const span = spans[position - first];
      if (!span) continue;
      span.classList.add("source");
      span.classList.toggle("minus", share < 0);
      span.style.setProperty("--s", (Math.abs(share) / most).toFixed(3));
    }
    for (const span of text.querySelectorAll("[tabindex]")) span.removeAttribute("tabindex");
    chosen.classList.add("chosen");
    chosen.tabIndex = 0;
    if (focus) chosen.focus({ preventScroll: true });
    tell(index, found, most);
  }

  function tell(index, found, most) {
    const place = make("p", "place");
    place.append(make("span", "", `Token ${whole(first + index)}`));
    if (pinned !== null) {
      const unpin = make("button", "unpin", "unpin");
      unpin.type = "button";
      unpin.addEventListener("click", () => pin(null));
      place.append(unpin);
    }
    const facts = make("dl");
    const fact = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
    fact("importance", reading.importance[layer][index].toFixed(2) + (reading.written[layer][index] === 0 ? ", not written" : ""));
    const bits = reading.surprise[index];
    fact("surprise", bits === null ? "nothing was predicted" : `${bits.toFixed(1)} bits`);
    const list = make("ol");
    for (const { position, share } of found) {
      const item = make("li", share < 0 ? "minus" : "");
      const button = make("button");
      button.type = "button";
      const [before, at, after] = around(position);
      const quote = make("q");
      quote.append(before, make("b", "", at || "·"), after);
      const meta = make("span", "meta");
      const back = first + index - position;
      const where = back === 0 ? "this very token" : `${whole(back)} back` + (position < first ? ", before this page" : "");
      meta.append(make("span", "", `${whole(position)} · ${where}`), make("span", "", percent(share)));
      const bar = make("span", "bar");
      bar.style.display = "block";
      const fill = make("i");
      fill.style.width = `${(100 * Math.abs(share)) / most}%`;
      bar.append(fill);
      button.append(quote, meta, bar);
      button.disabled = position < first;
      button.addEventListener("click", () => pin(position - first, true));
      item.append(button);
      list.append(item);
    }
    const strip = make("div");
    strip.id = "strip";
    const total = Math.max(1, reading.end - reading.start);
    const tick = (position, name) => {
      const line = make("i", name);
      line.style.left = `${(100 * (position - reading.start + 0.5)) / total}%`;
      strip.append(line);
    };
    found.forEach(({ position, share }) => tick(position, share < 0 ? "minus" : ""));
    tick(first + index, "here");
    const ends = make("div", "ends");
    ends.append(make("span", "", whole(reading.start)), make("span", "", "where in the text"), make("span", "", whole(reading.end)));
    const rest = make("p", "rest");
    const told = [];
    const carried = reading.carried[layer][index];
    const dropped = reading.dropped[layer][index];
    if (carried > 0.005) told.push(`${percent(carried)} of the read come from the state before this text.`);
    if (dropped > 0.005) told.push(`${percent(dropped)} come from writes too faint to keep apart.`);
    rest.textContent = told.join(" ");
    const heading = make("h3", "", found.length ? "Its read drew on" : "Its read drew on no earlier token");
    const token = pieces(index, index + 1);
    panel.replaceChildren(place, make("div", "token", token.trim() ? token : token.replaceAll(" ", "·") || "·"), facts, heading);
    if (found.length) panel.append(list, strip, ends);
    if (told.length) panel.append(rest);
  }

  function pin(index, scroll = false, focus = false) {
    pinned = index;
    if (index === null) {
      show(shown);
      return;
    }
    show(index, focus);
    if (scroll) centre(index);
  }

  const centre = (index) => (text.scrollTop = spans[index].offsetTop - text.clientHeight / 2);

  const indexOf = (target) => (target instanceof Element && target.parentElement === text ? spans.indexOf(target) : -1);
  text.addEventListener("pointerover", (event) => {
    const index = indexOf(event.target);
    if (index >= 0 && event.pointerType !== "touch" && pinned === null) show(index);
  });
  text.addEventListener("click", (event) => {
    const index = indexOf(event.target);
    if (index >= 0) pin(pinned === index ? null : index, false, true);
  });
  text.addEventListener("keydown", (event) => {
    const at = shown ?? 0;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: spans.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      pin(Math.min(spans.length - 1, Math.max(0, to)), true, true);
    } else if (event.key === "Escape") pin(null);
  });
  for (const input of document.querySelectorAll("input[name=mark]")) input.addEventListener("change", mark);
  const layers = document.getElementById("layer");
  if (layers)
    layers.addEventListener("change", () => {
      layer = Number(layers.value);
      mark();
      show(shown);
    });
  mark();
  // Open on a token whose read reached far back, so that there is something to see.
  show(reading.open);
  centre(reading.open);
})();
