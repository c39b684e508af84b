// Drawing: memory maps on canvases, lines by plotly.js, text with marks. Colours come from the page's style sheet.

const style = () => getComputedStyle(document.documentElement);
const colour = (name) => style().getPropertyValue(name).trim();

/** Three numbers 0..255 of a hexadecimal colour. */
const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** 256 colours for cells -128..127: negative, paper, positive; made anew when the theme changes. */
let palette = null;
export function forgetColours() { palette = null; }
function colours() {
  if (palette) return palette;
  const [low, middle, high] = ["--negative", "--card", "--positive"].map((name) => parts(colour(name)));
  palette = Array.from({ length: 256 }, (_, index) => {
    const share = Math.max(-1, (index - 128) / 127);
    // The square root lifts what is small: a memory is mostly small values around a few large ones.
    const strength = Math.sqrt(Math.abs(share)), end = share < 0 ? low : high;
    return middle.map((value, at) => Math.round(value + (end[at] - value) * strength));
  });
  return palette;
}

export function short(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.0001 || size >= 1e6)) return value.toExponential(1).replace("+", "");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

/** The maps of one view: a figure for each head of each layer. */
export class Maps {
  constructor(root) { this.root = root; this.figures = []; this.last = null; }

  draw(layers) {
    this.last = layers;
    const wanted = layers.reduce((count, layer) => count + layer.picture.heads, 0);
    if (this.figures.length !== wanted) this.#build(layers);
    let at = 0;
    for (const layer of layers) {
      const { heads, height, width, peak } = layer.picture;
      const cells = Uint8Array.from(atob(layer.picture.cells), (character) => character.charCodeAt(0));
      for (let head = 0; head < heads; head += 1, at += 1) {
        const figure = this.figures[at];
        figure.cells = cells.subarray(head * height * width, (head + 1) * height * width);
        figure.shape = layer.picture;
        paint(figure.canvas, figure.cells, height, width);
        const most = Math.min(layer.picture.rows, layer.picture.columns), rank = layer.rank[head];
        figure.numbers.textContent = `energy ${short(layer.energy[head])}` + (rank === null ? "" : ` · rank\u00a0${short(rank)}\u00a0of\u00a0${most}`);
        figure.low.textContent = `−${short(peak, 2)}`;
        figure.high.textContent = `+${short(peak, 2)}`;
        if (figure.at) this.#tell(figure);
      }
    }
  }

  redraw() { if (this.last) { this.figures = []; this.draw(this.last); } }

  #build(layers) {
    this.figures = [];
    const made = [];
    for (const layer of layers) {
      for (let head = 0; head < layer.picture.heads; head += 1) {
        const figure = document.createElement("figure");
        const canvas = document.createElement("canvas");
        canvas.setAttribute("role", "img");
        const { rows, columns, width, height } = layer.picture;
        const name = `Layer ${layer.layer}` + (layer.picture.heads > 1 ? `, head ${head}` : "");
        const what = `${layer.title}, ${rows}\u00a0×\u00a0${columns}`;
        canvas.setAttribute("aria-label", `${name}: ${what}`);
        // As its cells are, but neither a line nor a tower.
        canvas.style.aspectRatio = String(Math.min(6, Math.max(0.8, width / height)));
        const caption = document.createElement("figcaption"), title = document.createElement("b");
        title.textContent = name;
        const kind = document.createElement("span");
        kind.textContent = ` · ${what}`;
        const numbers = document.createElement("div");
        const scale = document.createElement("div");
        scale.className = "scale";
        const low = document.createElement("span"), bar = document.createElement("canvas"), high = document.createElement("span");
        scale.append(low, bar, high);
        caption.append(title, kind, numbers, scale);
        figure.append(canvas, caption);
        paint(bar, Uint8Array.from({ length: 255 }, (_, index) => index - 127), 1, 255);
        const entry = { canvas, numbers, low, high, axes: layer.axes, at: null };
        canvas.addEventListener("pointermove", (event) => { entry.at = event; this.#tell(entry); });
        canvas.addEventListener("pointerleave", () => { entry.at = null; canvas.title = ""; });
        this.figures.push(entry);
        made.push(figure);
      }
    }
    this.root.replaceChildren(...made);
    this.root.closest(".view").classList.toggle("many", made.length > 2);
  }

  #tell({ canvas, at, cells, shape, axes }) {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(shape.height - 1, Math.max(0, Math.floor((at.clientY - box.top) / box.height * shape.height)));
    const column = Math.min(shape.width - 1, Math.max(0, Math.floor((at.clientX - box.left) / box.width * shape.width)));
    const value = (cells[row * shape.width + column] << 24 >> 24) / 127 * shape.peak;
    const range = (cell, of, all) => {
      const first = Math.floor(cell * all / of), last = Math.ceil((cell + 1) * all / of) - 1;
      return first === last ? `${first}` : `${first}–${last}`;
    };
    canvas.title = `${axes[0]} ${range(row, shape.height, shape.rows)}, ${axes[1]} ${range(column, shape.width, shape.columns)}: ${short(value)}`;
  }
}

function paint(canvas, cells, height, width) {
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height), table = colours();
  for (let at = 0; at < cells.length; at += 1) {
    const [red, green, blue] = table[(cells[at] + 128) & 255];
    image.data.set([red, green, blue, 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
}

/** Text as it is read: the latest tokens, each with its importance behind it and a line under what surprised. */
export class Text {
  static most = 700;
  constructor(root) {
    this.root = root;
    this.body = document.createElement("div");
    root.replaceChildren(this.body);
    this.waiting = [];
  }

  clear() { this.waiting = []; this.body.replaceChildren(); }

  add(pieces, leftOut) {
    if (leftOut) this.waiting.push(null);
    this.waiting.push(...pieces);
    if (this.waiting.length > Text.most) this.waiting = this.waiting.slice(-Text.most);
  }

  draw() {
    if (!this.waiting.length) return;
    const made = document.createDocumentFragment();
    for (const piece of this.waiting) {
      const span = document.createElement("span");
      if (piece === null) {
        span.className = "gap";
        span.textContent = " … ";
      } else {
        const [text, importance, surprise] = piece;
        if (!text) continue;
        const level = Math.min(5, Math.floor(importance * 6));
        span.className = (level ? `i${level}` : "") + (surprise !== null && surprise >= 8 ? " surprising" : "");
        span.textContent = text;
        span.title = `importance ${importance.toFixed(2)}` + (surprise === null ? "" : `, ${surprise.toFixed(1)} bits`);
      }
      made.append(span);
    }
    this.waiting = [];
    this.body.append(made);
    while (this.body.childElementCount > Text.most) this.body.firstElementChild.remove();
  }
}

const DASHES = ["solid", "dash", "dot", "dashdot"];
const lineColours = () => [colour("--accent"), colour("--positive"), ...(matchMedia("(prefers-color-scheme: dark)").matches
  ? ["#2fc79a", "#e08fbe"] : ["#008a63", "#a8558a"])];

function frame(panels, titles, ticks) {
  const ink = colour("--ink"), muted = colour("--muted"), line = colour("--line");
  const gap = 0.075, each = (1 - gap * (panels - 1)) / panels;
  const layout = {
    margin: { l: 48, r: 10, t: 18, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 11.5, color: ink }, showlegend: false, hovermode: "x", annotations: [],
    hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: ink } }, uirevision: "kept",
    xaxis: { ...ticks, anchor: `y${panels > 1 ? panels : ""}`, gridcolor: line, zeroline: false, tickcolor: line, color: muted, nticks: 6 },
  };
  for (let panel = 0; panel < panels; panel += 1) {
    const top = 1 - panel * (each + gap);
    layout[`yaxis${panel ? panel + 1 : ""}`] = { domain: [Math.max(0, top - each), top], gridcolor: line, zeroline: false, color: muted,
      nticks: 4, rangemode: "tozero", fixedrange: true };
    layout.annotations.push({ text: titles[panel], x: 0, xref: "paper", xanchor: "left", y: top, yref: "paper", yanchor: "bottom",
      showarrow: false, font: { size: 12, color: ink } });
  }
  return layout;
}

const SETTINGS = { displayModeBar: false, responsive: true, doubleClick: "reset" };

/** Lines along the stream: surprise, then energy, change, rank and writes of each layer; of a fork also the distance. */
export class Lines {
  static most = 400;
  constructor(root, unit) { this.root = root; this.unit = unit; this.points = []; this.stride = 1; this.since = 0; this.isFork = false; }

  start(trail, isFork) { this.points = trail.slice(); this.stride = 1; this.since = 0; this.isFork = isFork; this.drawn = null; }

  add(point) {
    this.since += 1;
    if (this.since < this.stride) return;
    this.since = 0;
    this.points.push(point);
    if (this.points.length > Lines.most) {
      this.points = this.points.filter((_, index) => index % 2 === 0);
      this.stride *= 2;
    }
  }

  draw(layers) {
    if (!this.points.length || !window.Plotly) return;
    const told = ["Energy (Σ S²)", "Change per step (‖ΔS‖)", "Effective rank", "Steps written (share)"];
    // Not every memory is a matrix, or chooses what it writes.
    const numbers = [0, 1, 2, 3].filter((number) => number < 2
      || this.points.some((point) => point[3].some((layer) => (layer[number] ?? null) !== null)));
    const titles = [`Surprise (${this.unit})`, ...numbers.map((number) => told[number])];
    if (this.isFork) titles.unshift("Distance to the other memory");
    const [palette, x] = [lineColours(), this.points.map((point) => point[0])];
    const traces = [];
    const add = (panel, y, name, index, isNamed = false) => traces.push({
      x, y, name, showlegend: isNamed, legendgroup: name, type: "scatter", mode: "lines", connectgaps: false, yaxis: `y${panel ? panel + 1 : ""}`, xaxis: "x",
      line: { color: palette[index % palette.length], width: 1.6, dash: DASHES[Math.floor(index / palette.length) % 4] },
      hovertemplate: `${name ? `${name}: ` : ""}%{y:.4g}<extra></extra>`,
    });
    let panel = 0;
    if (this.isFork) add(panel++, this.points.map((point) => point[2]), "", 0);
    add(panel++, this.points.map((point) => point[1]), "", 0);
    for (const number of numbers) {
      layers.forEach((layer, index) => add(panel, this.points.map((point) => point[3][index]?.[number]),
        layers.length > 1 ? `layer ${layer.layer}` : "", index, number === 0));
      panel += 1;
    }
    const layout = frame(titles.length, titles, { title: { text: "position (steps read)", standoff: 10 } });
    layout.height = 92 * titles.length + 52;
    if (layers.length > 1) {
      Object.assign(layout, { showlegend: true, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", itemclick: false } });
      layout.margin.t += 26;
      layout.height += 26;
      layout.legend.y += 26 / layout.height;
    }
    window.Plotly.react(this.root, traces, layout, SETTINGS);
  }
}

/** A name as plotly shows it as it is: it reads some tags in texts, links among them. */
const plain = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Rows as they are read, with what was expected of them. */
export class Rows {
  static most = 300;
  constructor(root) { this.root = root; this.names = []; this.rows = []; }

  clear() { this.rows = []; }

  add(position, pieces, names) {
    this.names = names.slice(0, 4).map(plain);
    pieces.forEach((piece, index) => this.rows.push([position - pieces.length + index + 1, piece[0], piece[1]]));
    this.rows = this.rows.slice(-Rows.most);
  }

  draw() {
    if (!this.rows.length || !window.Plotly) return;
    const x = this.rows.map((row) => row[0]), [first, second] = lineColours(), traces = [];
    this.names.forEach((name, column) => {
      const yaxis = `y${column ? column + 1 : ""}`;
      const line = (kind, at, dash, shade) => traces.push({ x, y: this.rows.map((row) => row[at][column]), name: `${name}, ${kind}`,
        type: "scatter", mode: "lines", yaxis, xaxis: "x", line: { color: shade, width: 1.5, dash },
        hovertemplate: `${kind}: %{y:.4g}<extra></extra>` });
      line("came", 1, "solid", first);
      line("expected", 2, "dot", second);
    });
    const layout = frame(this.names.length, this.names, { title: { text: "row", standoff: 6 } });
    for (const name of Object.keys(layout)) if (name.startsWith("yaxis")) layout[name].rangemode = "normal";
    layout.height = Math.max(220, 110 * this.names.length + 44);
    window.Plotly.react(this.root, traces, layout, SETTINGS);
  }
}
