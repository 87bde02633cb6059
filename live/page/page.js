// The live page: draws each snapshot that comes (four a second at most), and keeps nothing but the last two minutes.
import { drawDots, drawPercentiles, drawQueue, drawThroughput, Stream } from "./draw.js";
import { Story, headline } from "./story.js";

const SECONDS = 120;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
let parts = {};
let history = [];
let second = 0;
let recent = []; // the snapshots of the last second, for rates
let source = null;
let lastTable = 0;
const lanes = new Map();
const story = new Story(byId("happened"));
const stream = new Stream(byId("stream"));

export const value = (row) => Number(Object.values(parts).map((part) => part.rows[row]).find((text) => text !== undefined));

// --- what comes ---------------------------------------------------------------------------------------------

function watch() {
  source = new EventSource("events");
  source.addEventListener("history", (event) => { history = JSON.parse(event.data); });
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.onerror = () => {
    document.body.className = "off";
    set(byId("headline"), "No word from the live service: connecting again …");
  };
}

// Nobody looks at a page in the background: nothing is asked for it.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    recent = [];
  } else {
    watch();
  }
});

function take(now) {
  // nginx counts an idle connection as waiting only after CLIENT_KEEPALIVE_MIN_SECONDS.
  if (now.nginx) now.nginx.waiting = Math.max(0, now.nginx.active - now.nginx.reading - now.nginx.writing);
  if (recent.length && now.now < recent.at(-1).now) recent = []; // the service was started again
  while (recent.length > 1 && now.now - recent[1].now >= 1) recent.shift();
  const before = recent[0] ?? now;
  recent.push(now);
  if (now.last && Math.floor(now.now) !== second) {
    if (second) history.push(now.last);
    second = Math.floor(now.now);
  }
  history = history.slice(-SECONDS);
  const span = Math.max(0.2, now.now - before.now);
  const rate = (later, earlier) => Math.max(0, ((later ?? 0) - (earlier ?? 0)) / span);
  const rates = Object.fromEntries(
    ["served", "refused", "failed", "client"].map((group) => [group, rate(now.groups[group], before.groups[group])]));
  const workers = now.replicas.flatMap((replica) => (replica.workers ?? []).map((worker) => {
    const old = before.replicas.find((each) => each.number === replica.number)?.workers
      ?.find((each) => key(replica, each) === key(replica, worker));
    return { ...worker, replica, key: key(replica, worker), silent: isSilent(worker),
      rate: old ? rate(worker.requests, old.requests) : 0, cpu: old ? rate(worker.cpu_seconds, old.cpu_seconds) : 0 };
  }));
  const view = { now, before, span, rates, workers, rate: Object.values(rates).reduce((a, b) => a + b, 0) };
  draw(view, rate);
}

const key = (replica, worker) => `${replica.number}/${worker.slot}/${worker.generation}`;
// One that leaves ends its event loop a moment before its process.
const SILENT_SECONDS = { starting: Infinity, draining: 3, finishing: 3 };
export const isSilent = (worker) => worker.silence_seconds >= (SILENT_SECONDS[worker.state] ?? 1);

// --- drawing ------------------------------------------------------------------------------------------------

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(count) {
  return count === undefined || count === null ? "–" : count > 0 && count < 9.95 && count % 1 ? count.toFixed(1) : number.format(Math.round(count));
}

function milliseconds(ms) {
  return ms === null || ms === undefined ? "–" : ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function draw(view, rate) {
  const said = headline(view);
  document.body.className = said.alarm ? "alarm" : "";
  set(byId("headline"), said.text);
  if (byId("said").dataset.kind !== said.kind) { // a reader hears of what changed, not of each number
    byId("said").dataset.kind = said.kind;
    set(byId("said"), said.text);
  }
  set(byId("rate"), show(view.rate));
  set(byId("p99"), milliseconds(view.now.percentiles.p99));
  drawNginx(view, rate);
  drawReplicas(view);
  drawAnswers(view, rate);
  drawThroughput(byId("throughput"), history);
  drawPercentiles(byId("percentiles"), history, ["SLO_P50_MS", "SLO_P95_MS", "SLO_P99_MS"].map(value));
  stream.feed(view, lanes);
  story.add(view, value);
  if (byId("table").open && performance.now() - lastTable > 2000) {
    lastTable = performance.now();
    drawTable(view);
  }
}

function drawNginx({ now, before }, rate) {
  const nginx = now.nginx;
  byId("nginx").classList.toggle("mute", !nginx);
  // One of them is this page's own question.
  const writing = nginx ? Math.max(0, nginx.writing - 1) : null;
  const active = nginx ? Math.max(0, nginx.active - 1) : null;
  set(byId("clients"), show(active));
  set(byId("clients-unit"), active === 1 ? "client connected" : "clients connected");
  set(byId("accepted"), nginx ? `${show(rate(nginx.accepted, before.nginx?.accepted ?? nginx.accepted))} /s` : "–");
  set(byId("reading"), show(nginx?.reading));
  set(byId("writing"), show(writing));
  set(byId("waiting"), show(nginx?.waiting));
  drawDots(byId("client-dots"), nginx ? [["reading", nginx.reading], ["writing", writing], ["waiting", nginx.waiting]] : [], 0, 11);
  byId("lost").hidden = !now.lost;
  set(byId("lost"), `${show(now.lost)} requests are not in these counts: the space for the log was full.`);
}

function drawReplicas({ now, workers }) {
  const box = byId("replicas");
  const present = new Set();
  for (const replica of now.replicas) {
    const id = `replica-${replica.number}`;
    present.add(id);
    const element = byId(id) ?? make(box, "section", "replica", `
      <header><h2 data-part="replica">replica ${replica.number}</h2><span class="generation" data-part="generation"></span>
      <span class="now" data-part="streams"></span></header><div class="lanes"></div>`, id);
    const generations = [...new Set((replica.workers ?? []).map((worker) => worker.generation))].sort((a, b) => a - b);
    element.classList.toggle("mute", replica.age > 2);
    set(element.querySelector(".generation"), generations.length > 1
      ? `generations ${generations.join(" and ")}` : generations.length ? `generation ${generations[0]}` : "");
    set(element.querySelector(".now"), replica.age > 2 ? `its observer is silent for ${replica.age.toFixed(1)} s` : [
      count(replica.streams, "stream"), count(replica.websockets, "WebSocket")].filter(Boolean).join(", "));
    const mine = workers.filter((worker) => worker.replica === replica)
      .sort((a, b) => a.slot - b.slot || a.generation - b.generation);
    for (const worker of mine) {
      present.add(worker.key);
      drawLane(element.querySelector(".lanes"), worker);
    }
  }
  for (const [name, lane] of lanes) if (!present.has(name)) { lane.remove(); lanes.delete(name); }
  for (const element of box.querySelectorAll(".replica")) if (!present.has(element.id)) element.remove();
  box.classList.toggle("few", workers.length < 3);
  box.classList.toggle("dense", workers.length > 6);
  byId("empty").hidden = now.replicas.length > 0;
}

const count = (many, what) => many ? `${number.format(many)} ${what}${many === 1 ? "" : "s"}` : "";

function make(parent, tag, name, html, id = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.innerHTML = html;
  if (id) element.id = id;
  parent.append(element);
  return element;
}

function drawLane(parent, worker) {
  let lane = lanes.get(worker.key);
  if (!lane) {
    lane = make(parent, "div", "lane", `
      <div class="who" data-part="worker"><b></b><span class="state" data-part="silence"></span></div>
      <div class="queue" data-part="queue"><span class="label"><span>queue</span><b></b></span><canvas aria-hidden="true"></canvas></div>
      <div class="flight" data-part="in_flight"><span class="label"><span>in flight</span><b></b></span><canvas aria-hidden="true"></canvas></div>
      <dl class="vitals">
        <div class="cpu" data-part="cpu"><dt>CPU</dt><dd></dd></div>
        <div class="memory" data-part="memory"><dt>memory</dt><dd></dd></div>
        <div class="connections" data-part="connections"><dt>connections</dt><dd></dd></div>
        <div class="threads" data-part="threads"><dt>threads</dt><dd></dd></div>
      </dl>`);
    lanes.set(worker.key, lane);
  }
  lane.dataset.state = worker.state;
  lane.dataset.slot = worker.slot;
  lane.dataset.generation = worker.generation;
  const place = [...parent.children].find((other) => other !== lane &&
    (other.dataset.slot - worker.slot || other.dataset.generation - worker.generation) > 0);
  if (lane.nextElementSibling !== (place ?? null)) parent.insertBefore(lane, place ?? null);
  lane.classList.toggle("silent", worker.silent);
  set(lane.querySelector(".who b"), `worker ${worker.slot}`);
  set(lane.querySelector(".state"), worker.silent ? `silent for ${worker.silence_seconds.toFixed(1)} s`
    : `${STATES[worker.state] ?? worker.state} · gen ${worker.generation}`);
  set(lane.querySelector(".queue b"), show(worker.queue));
  set(lane.querySelector(".flight b"), worker.limit ? `${show(worker.in_flight)} of ${show(worker.limit)}` : show(worker.in_flight));
  drawQueue(lane.querySelector(".queue canvas"), worker.queue ?? 0, worker.silent);
  drawDots(lane.querySelector(".flight canvas"), [[worker.silent ? "failed" : "writing", worker.in_flight ?? 0]], worker.limit ?? 0, 13);
  const megabytes = worker.memory_bytes / 2 ** 20;
  const most = value("WORKER_MEMORY_MB");
  vital(lane, "cpu", `${Math.round(worker.cpu * 100)} %`, worker.cpu * 100);
  vital(lane, "memory", `${Math.round(megabytes)} MiB`, most ? megabytes / most * 100 : 0);
  vital(lane, "connections", show(worker.connections), 0);
  const { busy = 0, limit = 0, waiting = 0 } = worker.threads ?? {};
  vital(lane, "threads", waiting ? `${busy}, ${waiting} wait` : limit ? `${busy} of ${limit}` : `${busy}`, limit ? busy / limit * 100 : 0);
}

const STATES = { starting: "starts", ready: "ready", retiring: "to be replaced", draining: "draining", finishing: "finishing" };

function vital(lane, name, text, share) {
  const element = lane.querySelector(`.${name}`);
  set(element.querySelector("dd"), text);
  element.style.setProperty("--share", Math.min(100, Math.round(share)));
  element.classList.toggle("high", share > 90);
}

const NAMES = {
  "app 1xx": "WebSocket 1xx", "app 2xx": "2xx", "app 3xx": "3xx", "app 4xx": "4xx, the app's", "app 5xx": "5xx, the app's",
  cache: "from nginx's cache", nginx: "nginx's own", full: "all places taken: 503", client_limit: "one client has too many: 429", silent: "worker silent: 504",
  lost: "worker lost: 502", down: "no worker reached: 503", client_left: "client left: 499", host: "unknown host: 421",
  too_large: "too large: 413", bad_request: "no request: 400",
};
const GROUPS = { served: ["app 1xx", "app 2xx", "app 3xx", "app 4xx", "cache", "nginx"], refused: ["full", "client_limit"],
  failed: ["app 5xx", "silent", "lost", "down"], client: ["client_left", "host", "too_large", "bad_request"] };

function drawAnswers({ now, before, rates }, rate) {
  const most = Math.max(1, ...Object.values(rates));
  for (const [group, causes] of Object.entries(GROUPS)) {
    const element = byId(`group-${group}`);
    set(element.querySelector(".per-second"), `${show(rates[group])} /s`);
    element.classList.toggle("quiet", !rates[group]);
    element.querySelector(".bar i").style.width = `${rates[group] / most * 100}%`;
    const lines = causes.filter((cause) => now.answers[cause])
      .map((cause) => [NAMES[cause], rate(now.answers[cause], before.answers[cause]), now.answers[cause]]);
    const list = element.querySelector("ul");
    while (list.children.length < lines.length) make(list, "li", "", "<span></span><b class=figure></b>");
    while (list.children.length > lines.length) list.lastChild.remove();
    lines.forEach(([name, , total], index) => {
      set(list.children[index].firstChild, name);
      set(list.children[index].lastChild, number.format(total));
    });
  }
}

function drawTable({ now, workers, rates }) {
  const table = (caption, head, rows) => `<table><caption>${caption}</caption><tr>${head.map((cell) => `<th scope="col">${cell}</th>`).join("")}</tr>${
    rows.map(([first, ...cells]) => `<tr><th scope="row">${first}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("")}</table>`;
  const nginx = now.nginx;
  byId("table-here").innerHTML = table("nginx", ["connections", "reading", "writing", "kept alive", "accepted so far"],
    nginx ? [[nginx.active - 1, nginx.reading, nginx.writing - 1, nginx.waiting, number.format(nginx.accepted)]] : []) +
    table("workers", ["worker", "state", "silent for", "accept queue", "in flight", "connections", "CPU", "memory", "threads"],
      workers.map((worker) => [`replica ${worker.replica.number}, worker ${worker.slot}, generation ${worker.generation}`,
        STATES[worker.state] ?? "", `${worker.silence_seconds.toFixed(1)} s`, `${worker.queue} of ${worker.queue_limit}`,
        `${worker.in_flight} of ${worker.limit}`, worker.connections, `${Math.round(worker.cpu * 100)} %`,
        `${Math.round(worker.memory_bytes / 2 ** 20)} MiB`, worker.threads?.busy ?? ""])) +
    table("answers", ["group", "a second", "so far"], Object.keys(GROUPS).map((group) => [group, show(rates[group]), number.format(now.groups[group] ?? 0)])) +
    table("percentiles", ["p50", "p95", "p99"], [[50, 95, 99].map((share) => milliseconds(now.percentiles[`p${share}`]))]);
}

// --- what each part is --------------------------------------------------------------------------------------

const card = byId("card");
let owner = null; // the element whose card is shown
let pinned = false;
let quiet = false;
let timer = 0;

function open(element, pin) {
  const part = parts[element.dataset.part];
  if (!part) return;
  clearTimeout(timer);
  owner = element;
  pinned = pin;
  set(byId("card-title"), part.title);
  set(byId("card-text"), part.text);
  byId("card-rows").replaceChildren(...Object.entries(part.rows).map(([row, text]) => {
    const line = document.createElement("tr");
    line.append(...[row, text].map((cell) => Object.assign(document.createElement("td"), { textContent: cell })));
    return line;
  }));
  byId("card-page").href = part.page;
  set(byId("card-page"), part.page);
  card.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.max(12, Math.min(box.left, innerWidth - card.offsetWidth - 12));
  const below = box.bottom + 8 + card.offsetHeight < innerHeight || box.top < card.offsetHeight + 8;
  card.style.left = `${left + scrollX}px`;
  card.style.top = `${scrollY + (below ? box.bottom + 8 : box.top - card.offsetHeight - 8)}px`;
  if (pin) card.focus({ preventScroll: true });
}

function close() {
  const back = pinned && card.contains(document.activeElement) ? owner : null;
  card.hidden = true;
  owner = null;
  pinned = false;
  quiet = true; // the focus that goes back opens nothing
  back?.focus?.();
  quiet = false;
}

const partOf = (event) => event.target.closest?.("[data-part]");
document.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "mouse" || pinned) return;
  clearTimeout(timer);
  const element = partOf(event);
  if (element && element !== owner) timer = setTimeout(open, 180, element, false);
  else if (!element && owner && !card.contains(event.target)) timer = setTimeout(close, 250);
});
document.addEventListener("focusin", (event) => {
  if (quiet) return;
  if (!pinned && partOf(event)?.matches(":focus-visible")) open(partOf(event), false);
  else if (owner && !card.contains(event.target) && !partOf(event)) close();
});
document.addEventListener("click", (event) => {
  if (partOf(event)) open(partOf(event), true);
  else if (owner && !card.contains(event.target)) close();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && owner) close(); });

// --- begin --------------------------------------------------------------------------------------------------

for (const group of Object.keys(GROUPS)) {
  const title = { served: "served", refused: "refused", failed: "failed", client: "the client's" }[group];
  make(byId("groups"), "div", "group", `<div><button class="part" data-part="${group}">${title}</button>
    <span class="per-second">–</span></div><div class="bar"><i></i></div><ul></ul>`, `group-${group}`).dataset.group = group;
}
parts = await (await fetch("parts")).json();
watch();
