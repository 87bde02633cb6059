// What happens, in words: the sentence at the top, and the list of what has changed.

const LINES = 7;
const round = (many) => many < 10 ? Math.max(0.1, many).toFixed(1) : Math.round(many).toLocaleString("en");
const named = (worker, replicas) => `worker ${worker.slot}${replicas > 1 ? ` of replica ${worker.replica.number}` : ""}`;
const upper = (text) => text[0].toUpperCase() + text.slice(1);

/** The sentence for what matters most: {kind, text, alarm}. `kind` changes when a reader has to hear of it. */
export function headline({ now, rates, workers, rate }) {
  const replicas = now.replicas;
  if (!now.nginx) return { kind: "nginx", text: "nginx does not answer", alarm: true };
  const silent = workers.filter((worker) => worker.silent);
  if (silent.length) {
    const longest = silent.reduce((a, b) => a.silence_seconds > b.silence_seconds ? a : b);
    const rest = silent.length > 1 ? `, and ${silent.length - 1} more` : "";
    return { kind: `silent ${silent.map((worker) => worker.key)}`, alarm: true,
      text: `${upper(named(longest, replicas.length))} is silent for ${longest.silence_seconds.toFixed(1)} s${rest}: something blocks its event loop` };
  }
  if (!replicas.length) return { kind: "none", text: "No replica of the app is there", alarm: true };
  const mute = replicas.filter((replica) => replica.age > 2);
  if (mute.length) return { kind: `mute ${mute.map((replica) => replica.number)}`, alarm: true,
    text: `No word from replica ${mute.map((replica) => replica.number).join(", ")}: its observer does not answer` };
  if (rates.failed >= 0.5) return { kind: "failed", alarm: true, text: `${round(rates.failed)} requests a second fail` };
  if (rates.refused >= 0.5) return { kind: "refused", alarm: false,
    text: `More than there is room for: ${round(rates.refused)} requests a second are refused at once, ${round(rates.served)} are served` };
  for (const replica of replicas) {
    const mine = workers.filter((worker) => worker.replica === replica);
    const where = replicas.length > 1 ? ` in replica ${replica.number}` : "";
    const generations = [...new Set(mine.map((worker) => worker.generation))].sort((a, b) => a - b);
    if (generations.length > 1) {
      const [old, young] = [generations[0], generations.at(-1)];
      return mine.some((worker) => worker.generation === young && worker.state === "starting")
        ? { kind: `grows ${young}`, alarm: false, text: `A reload${where}: generation ${young} grows beside ${old}, which serves on` }
        : { kind: `drains ${old}`, alarm: false, text: `A reload${where}: generation ${young} serves, ${old} finishes what it has` };
    }
    if (mine.length && mine.every((worker) => worker.state === "starting")) return { kind: `starts ${replica.number}`, alarm: false, text: `Replica ${replica.number} starts` };
    if (mine.length && mine.every((worker) => ["draining", "finishing"].includes(worker.state))) return { kind: `leaves ${replica.number}`, alarm: false, text: `Replica ${replica.number} leaves: it finishes what it has` };
  }
  const ready = workers.filter((worker) => worker.state === "ready").length;
  const who = `${ready} worker${ready === 1 ? "" : "s"}${replicas.length > 1 ? ` in ${replicas.length} replicas` : ""}`;
  return rate >= 0.1 ? { kind: "serves", alarm: false, text: `All well: ${who} answer${ready === 1 ? "s" : ""} ${round(rate)} requests a second` }
    : { kind: "idle", alarm: false, text: `All well: ${who} ready, nobody asks` };
}

/** The list of what has changed, the newest first, each line with the time since then. */
export class Story {
  constructor(list) {
    this.list = list;
    this.old = null;
    this.idleSince = null;
  }

  say(text, kind = "") {
    const line = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = "now";
    line.dataset.at = performance.now();
    const words = document.createElement("span");
    words.textContent = text;
    words.className = kind;
    line.append(time, words);
    this.list.prepend(line);
    while (this.list.children.length > LINES) this.list.lastChild.remove();
  }

  add(view, value) {
    for (const line of this.list.children) {
      const seconds = (performance.now() - line.dataset.at) / 1000;
      const text = seconds < 2 ? "now" : seconds < 60 ? `${Math.floor(seconds)} s` : `${Math.floor(seconds / 60)} min`;
      if (line.firstChild.textContent !== text) line.firstChild.textContent = text;
    }
    const { now, workers } = view;
    const seen = { workers: new Map(workers.map((worker) => [worker.key, worker])), replicas: now.replicas.map((each) => each.number),
      refused: view.rates.refused >= 0.5, failed: view.rates.failed >= 0.5, nginx: now.nginx, answers: now.answers };
    if (this.old) this.compare(this.old, seen, now, value);
    else this.say("you began to watch");
    this.old = seen;
  }

  compare(old, seen, now, value) {
    const many = Math.max(seen.replicas.length, old.replicas.length);
    for (const number of seen.replicas) if (!old.replicas.includes(number)) this.say(`replica ${number} is there`, "good");
    for (const number of old.replicas) if (!seen.replicas.includes(number)) this.say(`replica ${number} is gone`);
    for (const [key, worker] of seen.workers) {
      const before = old.workers.get(key);
      const who = named(worker, many);
      if (!before) this.say(`${who}, generation ${worker.generation}: ${worker.state === "starting" ? "starts" : "is there"}`);
      else if (worker.silent && !before.silent) this.say(`${who} is silent: its event loop is blocked`, "bad");
      else if (!worker.silent && before.silent) this.say(`${who} moves again, after ${before.silence_seconds.toFixed(1)} s`, "good");
      else if (before.state !== worker.state) this.say(`${who}, generation ${worker.generation}: ${{ ready: "ready", draining: "drains", finishing: "finishes its last requests" }[worker.state] ?? worker.state}`, worker.state === "ready" ? "good" : "");
    }
    for (const [key, worker] of old.workers) if (!seen.workers.has(key) && seen.replicas.includes(worker.replica.number)) this.say(`${named(worker, many)}, generation ${worker.generation}: gone`, worker.silent ? "bad" : "");
    if (seen.refused && !old.refused) this.say("more requests than there is room for: the rest is refused");
    if (!seen.refused && old.refused) this.say("room for all again", "good");
    if (seen.failed && !old.failed) this.say("requests fail", "bad");
    if (!seen.failed && old.failed) this.say("no request fails any more", "good");
    if (!seen.nginx !== !old.nginx) this.say(seen.nginx ? "nginx answers again" : "nginx does not answer", seen.nginx ? "good" : "bad");
    if (seen.nginx && old.nginx) this.connections(old.nginx, seen.nginx, now.now, value);
  }

  /** The life of a connection, where there are so few that one can be followed. */
  connections(before, after, now, value) {
    const came = after.accepted - before.accepted;
    if (came < 0 || before.active > 5 || after.active > 5) { this.idleSince = null; return; }
    if (came > 0) this.say(came === 1 ? "a client's connection is accepted" : `${came} connections are accepted`);
    if (after.waiting > before.waiting) {
      this.idleSince = now;
      this.say("its answer is sent: the connection is kept alive");
    }
    if (after.waiting < before.waiting && after.writing <= before.writing && after.reading <= before.reading) {
      const idle = this.idleSince === null ? 0 : now - this.idleSince;
      const limit = value("CLIENT_KEEPALIVE_SECONDS");
      this.say(idle >= limit - 1 ? `nginx closes it: idle for ${limit} s (CLIENT_KEEPALIVE_SECONDS)` : "the client closes its connection");
    }
  }
}
