// What is drawn on canvases: dots, charts, and the requests that travel between the tiers.

let colours = {};
const NAMES = ["ink", "soft", "line", "hollow", "panel", "served", "refused", "failed", "client", "reading", "writing", "waiting", "p50", "p95", "p99", "slo"];
function readColours() {
  const style = getComputedStyle(document.documentElement);
  colours = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
readColours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);

/** The canvas's context, cleared, in CSS pixels; with its width and height. */
function fresh(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** A dot for each, in the order of `kinds` ([colour, count]), and hollow ones up to `limit`; smaller where there are many. */
export function drawDots(canvas, kinds, limit, largest) {
  const signature = `${canvas.clientWidth}x${canvas.clientHeight} ${JSON.stringify(kinds)} ${limit} ${colours.ink}`;
  if (canvas.dataset.drawn === signature) return;
  canvas.dataset.drawn = signature;
  const { context, width, height } = fresh(canvas);
  const filled = kinds.reduce((sum, [, count]) => sum + count, 0);
  let all = Math.max(filled, limit);
  let size = largest;
  let each = 1; // requests that a dot stands for
  const fits = () => Math.floor(width / size) * Math.floor(height / size) >= Math.ceil(all / each);
  while (!fits()) if (size > 4) size -= 0.5; else each += 1;
  const columns = Math.max(1, Math.floor(width / size));
  all = Math.ceil(all / each);
  const dot = (index, colour, hollow) => {
    const x = (index % columns + 0.5) * size;
    const y = (Math.floor(index / columns) + 0.5) * size;
    context.beginPath();
    context.arc(x, y, Math.max(1.2, size * (hollow ? 0.3 : 0.38)), 0, 7);
    if (hollow === "ring") { context.lineWidth = size > 8 ? 2 : 1.2; context.strokeStyle = colour; context.stroke(); } else { context.fillStyle = colour; context.fill(); }
  };
  let index = 0;
  for (const [name, count] of kinds) {
    for (let left = Math.ceil(count / each); left > 0; left -= 1) dot(index++, colours[name], name === "waiting" ? "ring" : "");
  }
  while (index < all) dot(index++, colours.hollow, "full");
}

/** The accept queue: a square for each connection, from the worker's door backwards. */
export function drawQueue(canvas, count, alarm) {
  const { context, width, height } = fresh(canvas);
  const size = 7;
  const rows = Math.floor(height / size);
  const columns = Math.floor((width - 6) / size);
  const each = Math.max(1, Math.ceil(count / (rows * columns)));
  context.fillStyle = colours.hollow;
  context.fillRect(width - 3, 0, 3, rows * size - 1);
  for (let index = 0; index < Math.ceil(count / each); index += 1) {
    context.fillStyle = alarm ? colours.failed : colours.refused;
    context.fillRect(width - 6 - (Math.floor(index / rows) + 1) * size + 1, index % rows * size, size - 1.5, size - 1.5);
  }
  context.fillStyle = colours.line;
  if (!count) context.fillRect(0, rows * size / 2 - 1, width - 6, 1);
}

// --- charts -------------------------------------------------------------------------------------------------

const SECONDS = 120;
const LEFT = 48;
const RIGHT = 8;
const BOTTOM = 16;
const FONT = '11px system-ui, "DejaVu Sans", sans-serif';

function frame(canvas, labels, y, unit) {
  const { context, width, height } = fresh(canvas);
  context.font = FONT;
  context.textBaseline = "middle";
  for (const label of labels) {
    context.fillStyle = colours.line;
    context.fillRect(LEFT, Math.round(y(label, height)), width - LEFT - RIGHT, 1);
    context.fillStyle = colours.soft;
    context.textAlign = "right";
    context.fillText(unit(label), LEFT - 6, y(label, height));
  }
  context.textBaseline = "alphabetic";
  for (const [ago, text] of [[120, "2 min ago"], [60, "1 min"], [0, "now"]]) {
    context.textAlign = ago === 120 ? "left" : ago ? "center" : "right";
    context.fillText(text, LEFT + (1 - ago / SECONDS) * (width - LEFT - RIGHT), height - 3);
  }
  return { context, width, height };
}

const along = (index, length, width) => LEFT + (SECONDS - length + index + 1) / SECONDS * (width - LEFT - RIGHT);

function ceiling(most) {
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((factor) => factor * step).find((round) => round >= most);
}

export function drawThroughput(canvas, history) {
  const most = ceiling(Math.max(10, ...history.map(([served, refused, failed, client]) => served + refused + failed + client)));
  const y = (count, height) => 8 + (1 - count / most) * (height - BOTTOM - 12);
  const { context, width, height } = frame(canvas, [0, most / 2, most], y, (count) => count >= 10_000 ? `${count / 1000}k` : String(count));
  const bottoms = history.map(() => 0);
  ["served", "client", "refused", "failed"].forEach((name) => {
    const column = { served: 0, refused: 1, failed: 2, client: 3 }[name];
    const tops = history.map((second, index) => bottoms[index] + second[column]);
    if (history.some((second) => second[column])) {
      context.beginPath();
      tops.forEach((count, index) => context.lineTo(along(index, history.length, width), y(count, height)));
      for (let index = history.length - 1; index >= 0; index -= 1) context.lineTo(along(index, history.length, width), y(bottoms[index], height));
      context.fillStyle = colours[name];
      context.globalAlpha = name === "served" ? 0.6 : 1;
      context.fill();
      context.globalAlpha = 1;
    }
    tops.forEach((count, index) => { bottoms[index] = count; });
  });
}

export function drawPercentiles(canvas, history, objectives) {
  const most = Math.max(1000, ...history.map((second) => second[6] ?? 0), ...objectives.filter(Boolean));
  const decades = Math.ceil(Math.log10(most));
  const y = (ms, height) => 8 + (1 - Math.log10(Math.max(1, ms)) / decades) * (height - BOTTOM - 12);
  const labels = Array.from({ length: decades + 1 }, (_, power) => 10 ** power);
  const { context, width, height } = frame(canvas, labels, y, (ms) => ms < 1000 ? `${ms} ms` : `${ms / 1000} s`);
  ["p50", "p95", "p99"].forEach((name, index) => {
    context.strokeStyle = colours[name];
    if (objectives[index]) {
      context.setLineDash([3, 5]);
      context.lineWidth = 1;
      context.globalAlpha = 0.7;
      context.beginPath();
      context.moveTo(LEFT, y(objectives[index], height));
      context.lineTo(width - RIGHT, y(objectives[index], height));
      context.stroke();
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.lineWidth = 2;
    context.lineJoin = context.lineCap = "round";
    context.beginPath();
    let on = false;
    history.forEach((second, at) => {
      const ms = second[4 + index];
      if (ms === null) { on = false; return; }
      const x = along(at, history.length, width);
      if (on) context.lineTo(x, y(ms, height)); else { context.moveTo(x - 1, y(ms, height)); context.lineTo(x, y(ms, height)); }
      on = true;
    });
    context.stroke();
  });
}

// --- requests on their way ----------------------------------------------------------------------------------

/** Dots that travel from nginx to the workers and on to the answers: as many as there are requests, up to a measure. */
export class Stream {
  constructor(canvas) {
    this.canvas = canvas;
    this.sources = []; // {from, to, perSecond, colour, due}
    this.travellers = [];
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.last = 0;
    this.frame = (time) => this.draw(time);
    this.running = false;
  }

  feed({ rates, workers }, lanes) {
    if (this.still.matches || !this.canvas.clientWidth) { this.sources = []; return; }
    const area = this.canvas.getBoundingClientRect();
    const edge = (element, side) => {
      const box = element.getBoundingClientRect();
      return { x: box[side] - area.left, y: box.top - area.top + box.height / 2, box };
    };
    const before = new Map(this.sources.map((source) => [source.name, source.due]));
    this.sources = [];
    const add = (name, from, to, perSecond, colour, falls = false) => {
      if (perSecond > 0) this.sources.push({ name, from, to, colour, falls, perSecond: Math.min(perSecond, 14), due: before.get(name) ?? 0 });
    };
    const nginx = edge(document.getElementById("nginx"), "right");
    const total = workers.reduce((sum, worker) => sum + worker.rate, 0);
    for (const worker of workers) {
      const lane = lanes.get(worker.key);
      if (!lane) continue;
      const out = edge(lane, "right");
      add(`to ${worker.key}`, { x: nginx.x, y: Math.min(nginx.y, nginx.box.bottom) }, edge(lane, "left"), worker.rate, "writing");
      for (const group of ["served", "failed"]) {
        const target = edge(document.getElementById(`group-${group}`), "left");
        add(`${worker.key} ${group}`, out, { x: target.x - 14, y: target.y }, total ? rates[group] * worker.rate / total : 0, group);
      }
    }
    add("refused", { x: nginx.x, y: nginx.y - 30 }, { x: nginx.x + 34, y: nginx.y + 70 }, rates.refused, "refused", true);
    if (!this.running && (this.sources.length || this.travellers.length)) {
      this.running = true;
      this.last = performance.now();
      requestAnimationFrame(this.frame);
    }
  }

  draw(time) {
    const passed = Math.min(0.1, (time - this.last) / 1000);
    this.last = time;
    for (const source of this.sources) {
      source.due += source.perSecond * passed;
      while (source.due >= 1) {
        source.due -= 1;
        this.travellers.push({ ...source, at: 0, lane: Math.random() * 8 - 4 });
      }
    }
    const { context } = fresh(this.canvas);
    this.travellers = this.travellers.filter((traveller) => (traveller.at += passed / 0.8) < 1);
    for (const { from, to, at, lane, colour, falls } of this.travellers) {
      const ease = at * at * (3 - 2 * at);
      const x = from.x + (to.x - from.x) * (falls ? Math.sin(at * Math.PI) : at);
      const y = from.y + (to.y - from.y) * (falls ? at * at : ease) + lane * Math.sin(at * Math.PI);
      context.globalAlpha = falls ? 1 - at : Math.min(1, 4 * at, 4 * (1 - at));
      context.fillStyle = colours[colour];
      context.beginPath();
      context.arc(x, y, 3.2, 0, 7);
      context.fill();
    }
    this.running = this.travellers.length > 0 || this.sources.length > 0;
    if (this.running) requestAnimationFrame(this.frame);
  }
}
