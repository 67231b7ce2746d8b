// SPDX-License-Identifier: LGPL-2.1-or-later
// The dashboard: shows what /api/v1 tells, as it is told.
//
// Rules of this file:
// 1. Names, reasons and all other text come from other hosts and are not trusted: they become
//    text nodes, never markup, and what does not print becomes "?".
// 2. What did not change is not touched, so that focus, selection and screen readers stay where
//    they are.
// 3. Old data is called old: a status must come with each beat.
"use strict";

// With very many hosts a status comes every 4 s at most (broker/api/event_stream.py).
const OLD_S = 6;
const GONE_S = 12;
const EVENTS_SHOWN = 200;
const HISTORY_EVERY_MS = 15000;
const TRY_AGAIN_MS = 3000;
const DAY_S = 86400;
const PENALTY_WORDS = {
  "config": "its VM definition is old", "network": "network", "bridge": "management bridge",
  "load": "CPU load", "memory": "free memory", "fence-path": "its fence device",
  "cannot-start": "cannot start the VM", "lock-driver": "lock driver",
  "retries": "failed starts", "lockspace": "lockspace", "storage": "its slot is not written", "agent": "its agent",
  "local-maintenance": "local maintenance", "unexpected-down": "the VM died there",
  "reinitializing": "just started", "stopped": "stopped",
};

const $ = (id) => document.getElementById(id);

/** Foreign text: bounded, and without characters that do not print or turn the line around. */
function clean(text, most = 400) {
  return String(text ?? "").slice(0, most).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(element, is) {
  if (element.hidden === is) element.hidden = !is;
}

/** Brings the children of `list` in line with `items`: [key, item], made once, then updated. */
function keyed(list, items, create, update) {
  const old = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = null;
  for (const [key, item] of items) {
    let child = old.get(String(key));
    if (child) old.delete(String(key));
    else {
      child = create(item);
      child.dataset.key = key;
    }
    const wanted = place ? place.nextSibling : list.firstChild;
    if (child !== wanted) list.insertBefore(child, wanted);
    update(child, item);
    place = child;
  }
  for (const child of old.values()) child.remove();
}

function seconds(value) {
  if (value === null || value === undefined) return "not known";
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 2 * DAY_S) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / DAY_S)} days`;
}

const ago = (value) => (value === null || value === undefined ? "never" : `${seconds(value)} ago`);

// --- what comes in ------------------------------------------------------------------------------

let status = null;
let heardAt = 0;
let source = null;
let lastId = 0;
let events = [];
let history = null;
let span = "minutes";
// How far the clock of the answering host is ahead of this one's.
let aheadMs = 0;

function connect() {
  source?.close();
  source = new EventSource(`api/v1/events?status=yes&after=${lastId}`);
  source.addEventListener("status", (message) => {
    status = JSON.parse(message.data);
    heardAt = performance.now();
    render();
  });
  source.addEventListener("happened", (message) => {
    const event = JSON.parse(message.data);
    lastId = Math.max(lastId, event.id);
    take([event]);
  });
  source.addEventListener("missed", () => show($("missed"), true));
  source.addEventListener("error", () => {
    // A refusal ends it for good; a cut line is mended by the browser itself.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, TRY_AGAIN_MS);
  });
}

function take(more) {
  const known = new Set(events.map((event) => event.id));
  events.push(...more.filter((event) => !known.has(event.id)));
  events.sort((a, b) => b.id - a.id);
  events.length = Math.min(events.length, EVENTS_SHOWN);
  renderEvents();
}

async function begin() {
  try {
    const answer = await fetch(`api/v1/events?limit=${EVENTS_SHOWN}`);
    const list = await answer.json();
    lastId = list.last;
    take(list.events);
  } catch {
    // The stream says that the broker is gone.
  }
  connect();
  getHistory();
  setInterval(getHistory, HISTORY_EVERY_MS);
  setInterval(renderAge, 1000);
}

async function getHistory() {
  if (document.hidden) return;
  try {
    const answer = await fetch("api/v1/history");
    const date = Date.parse(answer.headers.get("Date"));
    // The header has whole seconds: less is no difference.
    const apart = date - Date.now();
    if (!Number.isNaN(apart)) aheadMs = Math.abs(apart) > 2000 ? apart : 0;
    history = await answer.json();
    renderPlots();
    renderStrips();
  } catch {
    // As above.
  }
}

// --- the top ------------------------------------------------------------------------------------

const ageS = () => (heardAt ? (performance.now() - heardAt) / 1000 : Infinity);
const isOld = () => ageS() > OLD_S;

function renderAge() {
  const pill = $("link");
  const age = ageS();
  const old = age > OLD_S;
  pill.classList.toggle("good", !old);
  pill.classList.toggle("bad", old);
  // What was said last is no word on now: nothing of it stays green.
  if (document.body.classList.toggle("old", old) !== wasOld) {
    wasOld = old;
    if (status) renderAll();
  }
  if (!old) say(pill, "live");
  else if (age === Infinity) say(pill, "no word from this host’s broker yet");
  else if (age < GONE_S) say(pill, "the data is old");
  else say(pill, `the broker is gone: nothing heard since ${clock(new Date(Date.now() - age * 1000))}`);
  if (status) renderSteps();
}

let wasOld = false;

function clock(time) {
  return time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function nameOf(id) {
  const host = status.hosts[id];
  return host ? clean(host.hostname, 100) : `host ${id}`;
}

/** What the VM is called; it begins a sentence. */
const vmName = () => clean(status.engine.name, 60) || "The engine";

/** That many seconds before the last status, as a time of day; with its day where that is another. */
function timeAgo(value) {
  return when(new Date(Date.now() - (ageS() + value) * 1000));
}

function when(time) {
  return time.toDateString() === new Date().toDateString() ? clock(time) : `${time.toLocaleDateString()} ${clock(time)}`;
}

const several = () => (status.vms ?? []).length > 1;

/** The first line: how many of the VMs that are to run are up and healthy. */
function allVmsNow() {
  const wanted = status.vms.filter((vm) => vm.want === "up" || vm.up);
  const up = wanted.filter((vm) => vm.up);
  const well = up.filter((vm) => vm.healthy);
  const unknown = wanted.some((vm) => vm.up === null);
  const down = wanted.some((vm) => vm.up === false);
  const all = well.length === wanted.length;
  return {
    level: all ? "good" : down ? "bad" : "warn",
    mark: all ? "" : down ? "DOWN " : unknown ? "? " : "! ",
    text: all && wanted.length === 1 ? `${clean(wanted[0].name, 100)}, the only VM that is to run, is up and healthy` : all ? `All ${wanted.length} VMs are up and healthy` : `${up.length} of ${wanted.length} VMs are up, ${well.length} healthy`,
  };
}

function render() {
  renderAge();
  renderAll();
}

/** The VM named in the configuration: how it stands, in words. */
function engineNow() {
  const { engine } = status;
  const name = vmName();
  const where = engine.host === null ? "" : ` on ${nameOf(engine.host)}`;
  const known = engine.known ? `: ${clean(engine.known)}` : "";
  const state = (status.vms ?? []).find((vm) => vm.number === 1)?.state;
  if (engine.up === null) return { level: "warn", mark: "? ", text: `Whether ${name} is up is not known${known}` };
  if (!engine.up && state === "off") return { level: "", mark: "off ", text: `${name} is shut down, as an administrator wants it` };
  if (!engine.up) return { level: "bad", mark: "DOWN ", text: `${name} is down${known || ": no host has it up"}` };
  if (engine.reached === false) return { level: "warn", mark: "! ", text: `${name} is up, but no other host reaches it,${where}` };
  if (engine.healthy) return { level: "good", mark: "", text: `${name} is up and healthy${where}` };
  if (state === "booting") return { level: "warn", mark: "… ", text: `${name} boots${where}` };
  const health = engine.healthy === null ? ", its health is not known" : ", not healthy";
  return { level: "warn", mark: "! ", text: `${name} is up${health}${where}` };
}

function sinceText() {
  const { engine } = status;
  if (engine.for_s === null) return "";
  const how = engine.up === null ? "Not known" : !engine.up ? "Down" : engine.healthy === false ? "There" : "Up";
  const since = engine.at_least ? `since before ${timeAgo(engine.for_s)}` : `since ${timeAgo(engine.for_s)}`;
  const what = several() ? `${vmName()}: ${how.toLowerCase()}` : how;
  return `${what} ${since} (${engine.at_least ? "at least " : ""}${seconds(engine.for_s)}).`;
}

function renderAll() {
  const { engine } = status;
  const old = isOld();
  say($("cluster"), clean(status.cluster, 100));
  say($("from"), `${nameOf(status.host_id)} (id ${status.host_id})`);
  const box = $("engine");
  const one = engineNow();
  const all = several() && engine.reached !== false ? allVmsNow() : one;
  const level = old ? "" : all.level;
  if (box.className !== level) box.className = level;
  document.body.classList.toggle("well", level === "good");
  say($("engine-now"), `${old ? `As last heard, at ${timeAgo(0)}: ` : ""}${all.text}`);
  say($("engine-also"), all !== one && one.level !== "good" ? `${one.text}.` : "");
  const title = `${old ? "? " : all.mark}${clean(status.cluster, 40)} – ha-agent`;
  if (document.title !== title) document.title = title;
  say($("engine-since"), sinceText());
  say($("engine-bound"), boundText());
  const own = status.reasons.map((reason) => clean(reason.text)).join("; ");
  say($("engine-why"), own ? `This host (${nameOf(status.host_id)}): ${own}.` : "");
  const { migration } = status;
  show($("migration"), migration !== null);
  if (migration) {
    $("migration").querySelector("progress").value = migration.percent;
    say($("migration").querySelector("span"), `${migration.percent} % after ${seconds(migration.elapsed_s)}`);
  }
  renderSteps();
  renderBanners();
  renderVms();
  renderHosts();
  renderButtons();
  if (!$("plots").firstChild) renderPlots();
  if (!$("strips").firstChild) renderStrips();
}

// --- a failover, step by step -------------------------------------------------------------------

const SHOW_DONE_MS = 15 * 60000;

/** When each host that is silent now was last heard, by this host's clock. */
const heard = new Map();
/** By VM number: the host that had it up last, as far as this page saw. */
const lastOn = new Map();

/** The VMs that may fall; the events name those beside the engine. */
function vmsToWatch() {
  const others = several() ? status.vms.filter((vm) => vm.number !== 1 && vm.want !== "down") : [];
  return [{ ...status.engine, number: 1, eventName: undefined }, ...others.map((vm) => ({ ...vm, eventName: vm.name }))];
}

/** Remember what the events say late, or not at all: a silent host is an event after 10 s only. */
function lookForFalls() {
  const nowMs = Date.now() + aheadMs;
  for (const host of Object.values(status.hosts)) {
    if (host.liveness !== "silent" || host.stopped) heard.delete(host.host_id);
    else if (!heard.has(host.host_id)) heard.set(host.host_id, nowMs - (ageS() + (host.age_s ?? 0)) * 1000);
  }
  for (const vm of vmsToWatch()) {
    if (vm.up && !heard.has(vm.host)) lastOn.set(vm.number, vm.host);
  }
}

function suspected(at, host) {
  return { at: heard.get(host) ?? at, host, seen: `suspected: ${nameOf(host)} is silent` };
}

/** The newest end of a VM that nobody wanted: when, of which host, and what was seen. */
function lastFall(vm) {
  const host = lastOn.get(vm.number);
  if (heard.has(host)) return suspected(heard.get(host), host);
  for (const event of events) {
    const { facts } = event;
    const at = Date.parse(event.time);
    const wasThere = vm.eventName ? (facts.vms ?? "").split(", ").includes(vm.eventName) : facts.engine === "up there when last seen";
    if (event.kind === "peer-silent" && wasThere) return suspected(at - (facts.silent_s ?? 0) * 1000, event.host_id);
    if (event.kind === "state-transition" && facts.vm === vm.eventName && facts.to === "EngineUnexpectedlyDown") return { at, host: null, seen: `it died on ${clean(event.host, 60)}` };
    if (event.kind === "maintenance-set" && facts.mode === "global") return null;
  }
  return null;
}

/** The proof of a host's death and the freeing of its id, by the fence log. */
function stepsOfTheProof(fall, isOver) {
  // The log's times are of other hosts' clocks: a little before is after.
  const log = status.fence_log.filter((entry) => entry.target === fall.host && entry.at * 1000 > fall.at - 60000);
  const logged = (...steps) => {
    const found = log.filter((entry) => steps.includes(entry.step)).map((entry) => entry.at * 1000);
    return found.length ? Math.min(...found) : null;
  };
  const by = log.find((entry) => ["dead", "freeing"].includes(entry.step));
  const proven = logged("freeing", "dead");
  return [
    [by ? `proven off by ${clean(by.by_name, 60)}` : "proven dead", proven, proven !== null || isOver],
    ["lease freed", logged("dead"), logged("dead") !== null || isOver],
  ];
}

/** The steps of a VM's last failover: label, time (null: not yet), and whether it was passed over.
    Null: it has not fallen, or is back where it was: that host was slow, not dead. */
function failoverSteps(vm) {
  const fall = lastFall(vm);
  if (!fall || status.global_maintenance !== false) return null;
  if (fall.host !== null && vm.up && vm.host === fall.host) return null;
  const since = (found) => events.filter((e) => Date.parse(e.time) >= fall.at && e.facts.vm === vm.eventName && found(e)).map((e) => Date.parse(e.time)).at(-1) ?? null;
  const isElsewhere = vm.up === true && vm.host !== fall.host;
  const started = since((e) => e.kind === "failover-started" || (e.kind === "state-transition" && e.facts.to === "EngineStarting"));
  const answers = since((e) => e.kind === "state-transition" && e.facts.to === "EngineUp");
  const isStarted = started !== null || isElsewhere;
  return [
    [fall.seen, fall.at, true],
    ...(fall.host === null ? [] : stepsOfTheProof(fall, isStarted)),
    ["started", started, isStarted],
    ["it answers", answers, answers !== null || (isElsewhere && vm.healthy === true)],
  ];
}

function isWorthShowing(steps, nowMs) {
  const [, time, over] = steps.at(-1);
  return !over || (time !== null && nowMs - time < SHOW_DONE_MS);
}

/** A row for each VM that is being taken over, or was a moment ago. */
function renderSteps() {
  lookForFalls();
  const nowMs = Date.now() + aheadMs;
  const rows = vmsToWatch().map((vm) => [vm, failoverSteps(vm)]).filter(([, steps]) => steps && isWorthShowing(steps, nowMs));
  show($("falls"), rows.length > 0);
  keyed($("falls"), rows.map(([vm, steps]) => [vm.number, [vm, steps]]),
    () => make("li", {}, make("h3"), make("ol", { class: "plain steps" })),
    (li, [vm, steps]) => renderRow(li, vm, steps, nowMs));
}

function renderRow(li, vm, steps, nowMs) {
  const [, last, over] = steps.at(-1);
  const first = steps[0][1];
  const at = steps.findIndex((step) => !step[2]);
  const passed = (ms) => seconds(Math.max(0, ms - first) / 1000);
  const name = clean(vm.eventName ?? "the engine", 60);
  const ended = `answers again${last === null ? "" : `, ${passed(last)} after the suspicion`}`;
  if (several()) say(li.children[0], over ? `${name} ${ended}` : `What happens now with ${name}`);
  else say(li.children[0], over ? `It ${ended}` : "What happens now");
  keyed(li.children[1], steps.map((step, n) => [n, [...step, n]]),
    () => make("li", {}, make("b"), make("span")),
    (step, [label, time, done, n]) => {
      const kind = done ? "done" : n === at ? "now" : "";
      if (step.className !== kind) step.className = kind;
      if (n === at) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
      say(step.children[0], label);
      const running = isOld() ? "not known now" : `for ${passed(nowMs)}`;
      say(step.children[1], time !== null ? `${clock(new Date(time - aheadMs))}${n ? `, +${passed(time)}` : ""}` : done ? "no time known" : n === at ? `waiting, ${running}` : "then");
    });
}

function boundText() {
  const { bound, engine } = status;
  if (isOld()) return "";
  if (status.global_maintenance) return "Global maintenance: were its host to die now, nothing would start it again.";
  if (!bound || status.global_maintenance === null) return "";
  if (bound.held) {
    return `If ${nameOf(engine.host)} died now, ${vmName()} would not be started: ${clean(bound.held)}.`;
  }
  const parts = [
    `${seconds(bound.detect_s)} to notice`, `${seconds(bound.prove_s)} to prove it dead (${clean(bound.by)})`,
    `${seconds(bound.lease_s)} to start`, bound.boot_s === null ? "its boot, not measured yet" : `${seconds(bound.boot_s)} to boot`,
  ].join(", ");
  const total = bound.total_s === null ? "after " : `in about ${seconds(bound.total_s)}: `;
  return `If ${nameOf(engine.host)} died now, ${vmName()} would answer again ${total}${parts}.`;
}

// --- what needs attention -----------------------------------------------------------------------

function modeText(mode) {
  if (!mode) return "";
  const by = mode.owner ? ` Set by ${clean(mode.owner, 100)}` : "";
  const why = mode.reason ? `: ${clean(mode.reason)}` : "";
  const until = mode.left_s === null ? " It has no end." : ` It ends in ${seconds(mode.left_s)}.`;
  return `${by}${why}${by || why ? "." : ""}${until}`;
}

/** What a silent host means for the engine: a takeover only where one is. */
function silentText(id) {
  const { engine } = status;
  if (engine.host === id) return `It answers over the network that ${vmName()} runs there.`;
  if (engine.up) return `${vmName()} runs on another host.`;
  if (status.global_maintenance) return "In global maintenance nobody takes over.";
  const taker = Object.values(status.hosts).find((host) => host.liveness === "live" && host.intent === `fence ${id}`);
  if (taker) return `${nameOf(taker.host_id)} takes over from it now.`;
  if (engine.likely === id) return `${vmName()} most likely runs there: look there, systemctl status ha-broker.`;
  return engine.up === null ? "Nothing proves yet that it is dead." : "";
}

/** What is wrong with VMs beside the engine, and which would have no place. */
function* vmBanners() {
  if (!several()) return;
  for (const vm of status.vms) {
    const name = clean(vm.name, 100);
    const why = vm.reason ? `${clean(vm.reason)}.` : "";
    if (vm.number > 1 && vm.up === null) yield [`vm-${vm.number}`, "critical", `Whether ${name} is up is not known`, why];
    else if (vm.number > 1 && ["waiting", "starting"].includes(vm.state) && status.global_maintenance === false) yield [`vm-${vm.number}`, "critical", `${name} is down`, why];
    else if (vm.number > 1 && vm.state === "up" && vm.healthy === false) yield [`vm-${vm.number}`, "critical", `${name} is not healthy`, why];
    if (vm.refused) yield [`refused-${vm.number}`, "warning", `${name} cannot be started on this host`, `${clean(vm.refused)}.`];
  }
  for (const lack of status.short) yield [`short-${lack.vm}`, "critical", "No place", `${clean(lack.text)}.`];
  for (const lack of status.n_plus_1) yield [`n1-${lack.if_dies}-${lack.vm}`, "warning", "Room is short", `${clean(lack.text)}.`];
}

/** What is to be said about one host. */
function* hostBanners(id, host) {
  const name = nameOf(id);
  for (const number of host.liveness === "live" ? host.unprotected : []) {
    const vm = status.vms.find((each) => each.number === number && number > 1);
    yield [`unprotected-${id}-${number}`, "critical", "No lease", `${vm ? clean(vm.name, 100) : vmName()} runs on ${name} without its lease: nothing keeps another host from starting it too. Shut it down: it starts again under its lease.`];
  }
  for (const number of host.liveness === "live" ? host.stuck ?? [] : []) {
    const vm = status.vms.find((each) => each.number === number && number > 1);
    yield [`stuck-${id}-${number}`, "warning", `${name} is not drained`, `${vm ? clean(vm.name, 100) : vmName()} cannot be migrated, and stays there. Why, on that host: ha-agent why${vm ? ` ${clean(vm.name, 100)}` : ""}. With the outage of a boot, there: ha-agent maintenance local --restart`];
  }
  if (host.host_shutdown) {
    yield [`shutdown-${id}`, "info", `${name} is shutting down`,
      host.liveness === "silent" ? "It has been silent since then." : several() ? "Its VMs leave it first." : `${vmName()} leaves it first.`];
  } else if (host.maintenance) {
    yield [`local-${id}`, host.mode?.ends_soon ? "warning" : "info", `${name} is in local maintenance`,
      `It starts no VM meanwhile.${modeText(host.mode)} End it there: ha-agent maintenance none`];
  }
  const dead = deadText(host);
  if (dead) {
    yield [`dead-${id}`, "critical", `${name} is dead`, `${dead}. ${status.engine.up && status.engine.host !== host.host_id ? `${vmName()} runs on another host.` : status.global_maintenance ? "In global maintenance nobody takes over." : "What it ran may be started elsewhere."}`];
  } else if (host.liveness === "silent" && !host.stopped) {
    yield [`silent-${id}`, "critical", `${name} is silent`, `${witnessText(host)}. ${silentText(host.host_id)}`];
  } else if (host.liveness === "silent") {
    yield [`silent-${id}`, "info", `${name} is off duty`, "Its agent was stopped in good order."];
  }
  if (host.witnesses?.heartbeat_trouble) {
    const w = host.witnesses;
    yield [`heartbeat-${id}`, "warning", `${name} does not answer ${w.heartbeat === "answered" ? "at its port for heartbeats" : "over the network"}`,
      `${clean(w.port_problem || w.heartbeat_problem)}. Were its storage to hang, nothing would speak for it.`];
  }
  if (host.intent && host.liveness === "live") yield [`intent-${id}`, "warning", "Now", `${name} is about to ${clean(host.intent)}${host.move?.left_s == null ? "" : `, done or given up in ${Math.round(host.move.left_s)} s`}.`];
  if (host.agent.startsWith("silent") && host.liveness === "live") {
    yield [`agent-${id}`, "critical", `The agent of ${name} is ${clean(host.agent, 60)}`, "Look there: systemctl status ha-agent"];
  }
}

/** What is to be said about the storage, as this host has it. */
function* storageBanners() {
  const s = status;
  if (s.storage.problem || s.storage.blind) {
    const means = s.storage.blind ? " What the other hosts do is not known here: each card is their last word." : "";
    const unheard = s.storage.unheard ? " The others see this host silent and count no score for it." : "";
    const problem = clean(s.storage.problem) || "the whiteboard is not read";
    yield ["storage", "critical", `The storage ${s.storage.state === "hung" ? "hangs" : "fails"} here`,
      `${problem}${s.storage.trouble_s === null ? "" : `, for ${seconds(s.storage.trouble_s)}`}.${means}${unheard}`];
  }
  if (s.lockspace_budget_s !== null && s.lockspace_budget_s < s.lockspace_budget_max_s / 2) {
    yield ["budget", "critical", "The lease is not renewed", `sanlock ${s.may_run?.length === 0 ? "gives this host's id up" : "ends the VMs here"} in ${seconds(s.lockspace_budget_s)}.`];
  }
  if (s.lockspace !== "joined") yield ["lockspace", "warning", "This host has not joined the lockspace", `${clean(s.lockspace)}.`];
  for (const [slot, cause] of Object.entries(s.bad_slots)) {
    yield [`slot-${slot}`, "warning", `Slot ${slot} cannot be read`, clean(cause)];
  }
}

function* banners() {
  const s = status;
  yield* vmBanners();
  if (s.global_maintenance) {
    yield ["global", s.global_mode?.ends_soon ? "warning" : "info", "Global maintenance",
      `Nothing starts, stops, moves or is fenced.${modeText(s.global_mode)} End it: ha-agent maintenance none`];
  } else if (s.global_maintenance === null) {
    yield ["global", "info", "Maintenance", "Whether global maintenance is set has not been read yet."];
  }
  for (const [id, host] of Object.entries(s.hosts)) yield* hostBanners(id, host);
  if (s.switched_off) {
    const how = s.switched_off.ordered ? "switched this host off: it hung" : "found this host without power";
    yield ["switched-off", "warning", "This host was dead", `${clean(s.switched_off.by_name, 100)} ${how}. Evidence: ha-agent why`];
  }
  yield* storageBanners();
  yield* fenceBanners();
  yield* lackBanners();
  if (s.config_problem) yield ["config", "warning", "An older configuration is in force", clean(s.config_problem)];
  if (s.state_problem) yield ["state-folder", "warning", "State folder", `${clean(s.state_problem)}.`];
  if (s.network) yield ["network", "warning", "Network", `${clean(s.network)}.`];
  for (const [name, monitor] of Object.entries(s.monitors)) {
    // A VM that boots, or is not well, is not reached either.
    if (monitor.verdict === "bad" && name !== "network" && (name !== "outside" || s.engine.healthy)) yield [`monitor-${name}`, "warning", `Monitor ${clean(name, 40)}`, `${clean(monitor.problem)}.`];
  }
  if (s.notify.problem) yield ["notify", "warning", "No notifications go out", clean(s.notify.problem)];
  for (const [way, found] of Object.entries(s.notify.transports)) {
    if (found.last_error) yield [`notify-${way}`, "warning", `Notices by ${clean(way, 40)} fail`, `${clean(found.last_error)}. Try it: ha-agent notify test`];
  }
}

/** One for each device: that it cannot be reached from several hosts has one cause. */
function* fenceBanners() {
  const unproven = status.fence_paths.filter((path) => !path.ok || path.proven_age_s === null || path.proven_age_s > DAY_S);
  for (const host of new Set(unproven.map((path) => path.host))) {
    // A host that is gone may have taken its device with it.
    const paths = unproven.filter((path) => path.host === host);
    const newest = paths.reduce((least, path) => Math.min(least, path.proven_age_s ?? Infinity), Infinity);
    const details = [...new Set(paths.map((path) => clean(path.detail)).filter(Boolean))].join("; ");
    yield [`path-${host}`, "warning", `The fence device of ${nameOf(host)} is not proven by ${paths.map((path) => (path.by === host ? "itself" : nameOf(path.by))).join(", ")}`,
      `Last proven ${newest === Infinity ? "never" : ago(newest)}. ${details} Try it: ha-agent fence test ${host}`];
  }
}

/** What the cluster was never given. */
function* lackBanners() {
  const names = (ids) => ids.map(nameOf).join(", ");
  const { fence_device: fence, heartbeat, migration } = status.lacking;
  if (fence.length) yield ["nofence", "warning", `No fence device of ${names(fence)}`, `Nobody could prove it dead: after its death ${several() ? "its VMs wait" : "the VM waits"} minutes instead of seconds.`];
  if (heartbeat.length) yield ["noheartbeat", "warning", `No heartbeat of ${names(heartbeat)}`, "It publishes no address: were its storage to hang, nothing would speak for it."];
  if (migration.length) yield ["nomigration", "warning", "No migration", "The VM can leave this host only by a shutdown."];
}

const ORDER = { critical: 0, warning: 1, info: 2 };

function renderBanners() {
  const said = new Set();
  const all = [...banners()].sort((a, b) => ORDER[a[1]] - ORDER[b[1]])
    // A cause that several things share is said once, by the most urgent of them.
    .filter(([, , head, text]) => !said.has(text || head) && said.add(text || head))
    .map((item) => [item[0], item]);
  keyed($("banners"), all,
    () => make("li", {}, make("strong"), make("span"), make("a")),
    (li, [key, severity, head, text]) => {
      const name = `banner ${severity}`;
      if (li.className !== name) li.className = name;
      const [strong, words, link] = li.children;
      say(strong, `${severity === "info" ? "" : `${severity}: `}${head}.`);
      say(words, `${text} `);
      const topic = key.split("-")[0];
      show(link, severity !== "info" && topic !== "intent");
      if (link.hash !== `#${topic}`) link.setAttribute("href", `runbook.html#${topic}`);
      say(link, "What to do");
      link.setAttribute("aria-label", `What to do: ${head}`);
    });
}

// --- the VMs ------------------------------------------------------------------------------------

const VM_STATES = {
  up: "up", booting: "boots", moving: "moves", stopping: "stopping", starting: "starting",
  waiting: "waits", "no-place": "NO PLACE", off: "off", unknown: "not known",
};

function vmState(vm) {
  if (vm.state !== "up") return VM_STATES[vm.state] ?? clean(vm.state, 20);
  return vm.healthy ? "up, healthy" : vm.healthy === null ? "up, health not known" : "up, NOT healthy";
}

function vmLevel(vm) {
  if (vm.state === "off") return "";
  if (vm.up) return vm.healthy ? "good" : vm.state === "booting" ? "warn" : "bad";
  return vm.up === null ? "warn" : "bad";
}

function renderVms() {
  show($("vms-part"), several());
  if (!several()) return;
  keyed($("vms"), status.vms.map((vm) => [vm.number, vm]),
    () => make("li", {}, make("bdi"), make("span", { class: "pill" }), make("span", { class: "at" }), make("span", { class: "small" }), make("span", { class: "small why" })),
    (li, vm) => {
      const [name, pill, at, since, why] = li.children;
      say(name, clean(vm.name, 100));
      say(pill, vmState(vm));
      const kind = `pill ${vmLevel(vm)}`;
      if (pill.className !== kind) pill.className = kind;
      say(at, vm.host === null ? "on no host" : `on ${nameOf(vm.host)}`);
      say(since, vm.for_s === null ? "" : `for ${vm.at_least ? "at least " : ""}${seconds(vm.for_s)}`);
      // 0: its definition could not be read yet.
      const rank = `priority ${vm.priority}${vm.memory_mb ? `, ${gib(vm.memory_mb)}` : ""}`;
      say(why, vm.reason ? `${clean(vm.reason)} · ${rank}` : rank);
    });
}

function gib(mb) {
  return mb < 1024 ? `${Math.round(mb)} MiB` : `${Math.round(mb / 102.4) / 10} GiB`;
}

// --- the hosts ----------------------------------------------------------------------------------

const VM_WORDS = { up: "up", down: "not here", down_unexpected: "died here", down_missing: "gone from libvirt", unknown: "not known" };

function leaseText(w) {
  return `${clean(w.sanlock_state, 40)}${w.renewal_age_s === null ? "" : `, renewed ${ago(w.renewal_age_s)}`}`;
}

function witnessText(host) {
  const w = host.witnesses;
  if (!w) return "";
  const network = w.unanswered_s !== null ? `network without answer for ${seconds(w.unanswered_s)}`
    : w.heartbeat_age_s !== null ? `network answered ${ago(w.heartbeat_age_s)}` : `network: ${clean(w.heartbeat, 40)}`;
  const lease = `sanlock: ${leaseText(w)}`;
  return `Whiteboard changed ${ago(w.whiteboard_age_s)}, ${network}, ${lease}`;
}

/** Whether a card is what the host last said, since this one cannot read it any more. */
function isLastWord(host) {
  return status.storage.blind && !host.local;
}

/** Of a host that is switched off, by proof; empty: there is none, or it is back. */
function deadText(host) {
  if (host.liveness !== "silent") return "";
  const newest = status.fence_log.find((entry) => entry.target === host.host_id && entry.step !== "intent" && !entry.signature);
  if (!newest || !["dead", "freeing"].includes(newest.step)) return "";
  return `power off, proven by ${clean(newest.by_name, 100)} at ${when(new Date(newest.at * 1000 - aheadMs))}`;
}

/** Whether there is nothing to look at: a line is enough then. */
function isWell(host) {
  const lacking = host.penalties.reduce((sum, part) => sum + part.points, 0);
  const isGood = lacking * 20 <= host.score + lacking;
  return host.liveness === "live" && isGood && !host.maintenance && ["", "ok"].includes(host.agent) && !host.host_shutdown;
}

function makeCard() {
  return make("li", { class: "card" }, make("details", {},
    make("summary", { class: "head" }, make("span", { class: "name" }, make("bdi"), make("span", { class: "small" })), make("span", { class: "brief" }), make("span", { class: "pill" })),
    make("p", { class: "state" }), make("p", { class: "small why" }),
    make("div", { class: "score" }, make("span"), make("strong")),
    make("div", { class: "bar", "aria-hidden": "true" }),
    make("ul", { class: "lacks-list" }),
    make("div", { class: "memory" }, make("div", { class: "score" }, make("span"), make("strong")), make("div", { class: "bar", "aria-hidden": "true" }, make("span", { class: "used" }), make("span"))),
    make("dl"),
    make("p", { class: "page" }, make("a", { rel: "noreferrer" })),
    make("details", {}, make("summary", {}, "Monitors"), make("dl"))));
}

function renderHosts() {
  keyed($("hosts"), Object.entries(status.hosts).map(([id, host]) => [id, host]), makeCard, updateCard);
}

function updateCard(card, host) {
  const here = status.engine.host === host.host_id;
  const dead = deadText(host);
  const lastWord = isLastWord(host);
  const name = `card ${dead ? "silent dead" : lastWord ? "last-word" : host.liveness}${here ? " engine-here" : ""}`;
  if (card.className !== name) card.className = name;
  const details = card.firstChild;
  // It opens when trouble begins and closes when it ends; between that a person may do as he likes.
  const well = isWell(host) ? "yes" : "no";
  if (details.dataset.well !== well) {
    details.dataset.well = well;
    details.open = well === "no";
  }
  const [head, state, why, score, bar, lacks, memory, facts, link, more] = details.children;
  const [title, brief, pill] = head.children;
  say(title.children[0], nameOf(host.host_id));
  say(title.children[1], ` id ${host.host_id}${host.local ? ", this host" : ""}`);
  say(pill, isOld() ? "last word" : dead ? "OFF" : host.liveness === "live" ? "live" : host.liveness === "silent" ? "SILENT" : lastWord ? "last word" : "uncertain");
  const kind = `pill ${isOld() ? "" : host.liveness === "live" ? "good" : host.liveness === "silent" ? "bad" : "warn"}`;
  if (pill.className !== kind) pill.className = kind;
  say(brief, briefText(host, here, dead, lastWord));
  const past = host.liveness === "silent" || lastWord ? ", as last published" : "";
  say(state, `${clean(host.state, 60) || "state not published"}${past}${here ? ` – ${vmName()} is here` : ""}`);
  say(why, clean(host.reason));
  const lacking = host.penalties.reduce((sum, part) => sum + part.points, 0);
  say(score.children[0], `Score${past}`);
  say(score.children[1], `${host.score} of ${host.score + lacking}`);
  const parts = [["has", host.score], ...host.penalties.map((part) => ["lacks", part.points])].map((part, n) => [n, part]);
  keyed(bar, parts, () => make("span"), (piece, [kind, points]) => {
    piece.className = kind;
    piece.style.flexGrow = String(Math.max(0, points));
  });
  keyed(lacks, host.penalties.map((part, n) => [n, part]), () => make("li", {}, make("b"), make("span")), (li, part) => {
    say(li.children[0], `−${part.points} `);
    say(li.children[1], `${PENALTY_WORDS[part.name] ?? clean(part.name, 60)}: ${clean(part.why)}`);
  });
  const knowsMemory = several() && host.total_mb != null && host.free_mb != null;
  show(memory, knowsMemory);
  if (knowsMemory) {
    const [words, room] = memory.children;
    say(words.children[0], `Memory${past}`);
    say(words.children[1], `${gib(host.free_mb)} of ${gib(host.total_mb)} free`);
    room.children[0].style.flexGrow = String(Math.max(0, host.total_mb - host.free_mb));
    room.children[1].style.flexGrow = String(Math.max(0, host.free_mb));
  }
  fill(facts, factsOf(host));
  const page = host.local || host.liveness === "silent" ? null : host.api.find((address) => /^(\[[0-9a-f:.]{2,45}\]|[0-9.]{7,15}):[0-9]{1,5}$/i.test(address));
  show(link, Boolean(page));
  if (page) {
    link.firstChild.setAttribute("href", `http://${page}/`);
    say(link.firstChild, `The page of ${nameOf(host.host_id)}`);
  }
  show(more, host.local);
  if (host.local) fill(more.lastChild, Object.entries(status.monitors).map(([n, monitor]) => [clean(n, 40), monitorText(monitor)]));
}

/** The line of a host: what it does, or since when it does nothing any more. */
function briefText(host, here, dead, lastWord) {
  const age = host.age_s === null ? "never seen to live" : `last word ${ago(host.age_s)}, at ${timeAgo(host.age_s)}`;
  if (dead) return `${dead}; ${age}`;
  if (host.liveness === "silent" && host.stopped) return `stopped in good order; ${age}`;
  if (host.liveness === "silent" || lastWord) return age;
  if (several()) {
    const up = status.vms.filter((vm) => vm.up && vm.host === host.host_id);
    if (up.length) return `${up.every((vm) => vm.healthy) ? "runs" : "has"} ${up.map((vm) => clean(vm.name, 60)).join(", ")}`;
  } else if (here) {
    return status.engine.healthy ? `runs ${vmName()}` : `has ${vmName()}`;
  }
  if (host.maintenance) return "in local maintenance";
  if (host.agent && host.agent !== "ok") return `its agent is ${clean(host.agent, 40)}`;
  return host.score > 0 ? "ready" : "could not take it";
}

function fill(list, pairs) {
  const flat = pairs.flatMap(([term, text]) => [[`t-${term}`, ["dt", term]], [`d-${term}`, ["dd", text]]]);
  keyed(list, flat, ([tag]) => make(tag), (element, [, text]) => {
    if (typeof text === "string") return say(element, text);
    if (!element.firstChild) element.append(make("meter", { min: 0, "aria-label": text.label }), make("span"));
    const [meter, words] = element.children;
    meter.max = text.max;
    meter.low = text.max / 2;
    meter.value = text.value;
    return say(words, ` ${text.words}`);
  });
}

function factsOf(host) {
  const vm = host.engine_status;
  const facts = [[vmName(), VM_WORDS[vm.vm] ?? clean(vm.vm, 40)]];
  if (host.liveness === "silent" || isLastWord(host)) facts[0][1] += ", as last published";
  else if (vm.vm === "up") {
    const how = host.domain_type ? ` (${clean(host.domain_type, 20)})` : "";
    facts[0][1] += `${how}, health ${clean(vm.health, 20)}${vm.reason ? `: ${clean(vm.reason)}` : ""}`;
  }
  if (several()) {
    const here = status.vms.filter((vm) => vm.up && vm.host === host.host_id).map((vm) => clean(vm.name, 60));
    facts.push(["VMs", here.join(", ") || "none"]);
  }
  if (host.agent) facts.push(["Agent", clean(host.agent, 60)]);
  const w = host.witnesses;
  if (w) {
    facts.push(["Whiteboard", `changed ${ago(w.whiteboard_age_s)}`]);
    facts.push(["Network", w.unanswered_s !== null ? `no answer for ${seconds(w.unanswered_s)}`
      : w.heartbeat_age_s !== null ? `answered ${ago(w.heartbeat_age_s)}` : clean(w.heartbeat, 40)]);
    facts.push(["sanlock", leaseText(w)]);
  }
  const paths = status.fence_paths.filter((path) => path.host === host.host_id && path.by !== host.host_id);
  if (paths.length) {
    const good = paths.filter((path) => path.ok);
    const newest = Math.min(...paths.map((path) => path.proven_age_s ?? Infinity));
    facts.push(["Fence device", `proven by ${good.length} of ${paths.length} hosts${newest < Infinity ? `, last ${ago(newest)}` : ""}`]);
  }
  if (host.local && status.lockspace_budget_s !== null) {
    facts.push(["Lease budget", { label: "lease budget", max: status.lockspace_budget_max_s, value: status.lockspace_budget_s,
      words: `${Math.round(status.lockspace_budget_s)} of ${Math.round(status.lockspace_budget_max_s)} s` }]);
  }
  if (host.unknown.length) facts.push(["Not measured", clean(host.unknown.join(", "))]);
  return facts;
}

function monitorText(monitor) {
  const value = monitor.value === null ? "not known" : typeof monitor.value === "object"
    ? Object.entries(monitor.value).map(([target, part]) => `${clean(target, 100)} ${Math.round(part * 100)} %`).join(", ")
    : `${typeof monitor.value === "number" ? Math.round(monitor.value * 1000) / 1000 : clean(monitor.value, 60)} ${clean(monitor.unit, 20)}`.trim();
  return `${value}${monitor.problem ? `: ${clean(monitor.problem)}` : ""} (${seconds(monitor.age_s)} old)`;
}

// --- the scores ---------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function renderPlots() {
  if (!history || !status) return;
  const series = history[span];
  keyed($("plots"), Object.entries(series.scores),
    () => make("li", {}, make("bdi"), make("div"), make("span", { class: "last" })),
    (li, scores) => plot(li, scores, series, Number(li.dataset.key)));
  axis($("plots-axis"), series.step_s * series.engine.length);
}

/** Five times of day below a plot that ends now. */
function axis(list, seconds_) {
  keyed(list, [0, 1, 2, 3, 4].map((n) => [n, n]), () => make("span"), (span_, n) => {
    const at = new Date(Date.now() - seconds_ * 1000 * (1 - n / 4));
    const day = { day: "numeric", month: "short" };
    say(span_, n === 4 ? "now" : seconds_ > 2 * DAY_S ? at.toLocaleDateString([], day) : at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false }));
  });
}

/** What was worth a notice, on a plot of that many steps which ends now. */
function marks(svg, steps, stepS, height) {
  const endMs = Date.now() + aheadMs;
  for (const event of events) {
    if (event.severity === "info") continue;
    const x = steps - (endMs - Date.parse(event.time)) / 1000 / stepS;
    if (x < 0 || x > steps) continue;
    const line = draw("line", { x1: x, x2: x, y1: 0, y2: height, class: `mark ${event.severity === "critical" ? "critical" : "warning"}` });
    const title = draw("title", {});
    title.textContent = `${clock(new Date(Date.parse(event.time) - aheadMs))} ${clean(event.host, 60)}: ${eventText(event)}`;
    line.append(title);
    svg.append(line);
  }
}

// --- the availability ---------------------------------------------------------------------------

const STRIP_WORDS = { day: "24 hours", month: "30 days" };

function renderStrips() {
  if (!history || !status) return;
  keyed($("strips"), Object.entries(history.availability).filter(([name]) => name in STRIP_WORDS),
    () => make("li", {}, make("span"), make("div", {}, make("div", { class: "strip" }), make("div", { class: "axis", "aria-hidden": "true" })), make("span", { class: "last" })),
    (li, strip) => strips(li, strip, STRIP_WORDS[li.dataset.key]));
}

function strips(li, strip, words) {
  const steps = strip.up_s.length;
  const sum = (list) => list.reduce((all, each) => all + each, 0);
  const [up, down, unknown] = [sum(strip.up_s), sum(strip.down_s), sum(strip.unknown_s)];
  const watched = up + down + unknown;
  const share = watched ? `${(Math.floor((up / watched) * 100000) / 1000).toFixed(up === watched ? 0 : 3)} %` : "–";
  const away = [down ? `down for ${seconds(down)}` : "", unknown ? `not known for ${seconds(unknown)}` : ""].filter(Boolean).join(", ") || "never down";
  const text = watched ? `Available ${share} of the ${seconds(watched)} that were watched; ${away}` : "Not watched yet";
  const svg = draw("svg", { viewBox: `0 0 ${steps} 10`, preserveAspectRatio: "none", role: "img", "aria-label": `${words}: ${text}` });
  const kindOf = (n) => (strip.down_s[n] ? "is-down" : strip.unknown_s[n] ? "is-unknown" : strip.up_s[n] ? "is-up" : "");
  for (let n = 0; n < steps; n++) {
    const kind = kindOf(n);
    let to = n;
    while (to + 1 < steps && kindOf(to + 1) === kind) to++;
    if (kind) svg.append(draw("rect", { x: n, y: 0, width: to + 1 - n, height: 10, class: kind }));
    n = to;
  }
  marks(svg, steps, strip.step_s, 10);
  say(li.children[0], words);
  const [place, axis_] = li.children[1].children;
  place.replaceChildren(svg);
  axis(axis_, steps * strip.step_s);
  say(li.children[2], share);
  li.title = text;
}


function plot(li, scores, series, id) {
  const host = status.hosts[id];
  const most = Math.max(3400, ...scores.filter((score) => score !== null));
  const steps = scores.length;
  const svg = draw("svg", { viewBox: `0 0 ${steps} 100`, preserveAspectRatio: "none", role: "img" });
  const known = scores.filter((score) => score !== null);
  svg.setAttribute("aria-label", known.length
    ? `Score of ${nameOf(id)}: now ${scores.at(-1) ?? "not known"}, between ${Math.min(...known)} and ${Math.max(...known)}`
    : `Score of ${nameOf(id)}: not known`);
  svg.append(draw("line", { x1: 0, x2: steps, y1: 84, y2: 84, class: "base" }));
  for (let from = 0; from < steps; from++) {
    if (scores[from] === null) continue;
    let to = from;
    while (to + 1 < steps && scores[to + 1] !== null) to++;
    const points = [];
    for (let n = from; n <= to; n++) {
      const y = 84 - (scores[n] / most) * 78;
      points.push(`${n},${y}`, `${n + 1},${y}`);
    }
    svg.append(draw("polygon", { points: `${from},84 ${points.join(" ")} ${to + 1},84`, class: "area" }));
    svg.append(draw("polyline", { points: points.join(" "), class: "line" }));
    from = to;
  }
  for (let n = 0; n < steps; n++) {
    if (series.engine[n] !== id) continue;
    let to = n;
    while (to + 1 < steps && series.engine[to + 1] === id) to++;
    svg.append(draw("rect", { x: n, y: 90, width: to + 1 - n, height: 10, class: "place" }));
    n = to;
  }
  marks(svg, steps, series.step_s, 84);
  say(li.children[0], host ? nameOf(id) : `host ${id}`);
  li.children[0].title = li.children[0].textContent;
  li.children[1].replaceChildren(svg);
  say(li.children[2], scores.at(-1) === null ? "–" : String(scores.at(-1)));
}

for (const name of ["minutes", "day"]) {
  $(`span-${name}`).addEventListener("click", () => {
    span = name;
    for (const other of ["minutes", "day"]) $(`span-${other}`).setAttribute("aria-pressed", String(other === span));
    renderPlots();
  });
}

// --- what happened ------------------------------------------------------------------------------

function eventText(event) {
  if (event.kind !== "state-transition") return clean(event.text);
  const because = event.facts.reason ? `: ${clean(event.facts.reason)}` : "";
  const vm = several() ? `${clean(event.facts.vm ?? "engine", 60)}: ` : "";
  return `${vm}${clean(event.facts.from, 60)} → ${clean(event.facts.to, 60)}${because}`;
}

function renderEvents() {
  keyed($("events"), events.map((event) => [event.id, event]),
    () => make("li", {}, make("time"), make("span"), make("bdi"), make("span", { class: "what" })),
    (li, event) => {
      const [time, severity, host, what] = li.children;
      const at = new Date(event.time);
      if (time.dateTime !== event.time) time.dateTime = event.time;
      say(time, clock(at));
      time.title = at.toLocaleString();
      severity.className = ["critical", "warning", "info"].includes(event.severity) ? event.severity : "info";
      say(severity, clean(event.severity, 20));
      say(host, clean(event.host, 100));
      say(what, eventText(event));
    });
}

// --- orders -------------------------------------------------------------------------------------

let token = "";

/** Over plain HTTP from elsewhere whoever listens reads the token: it is not even asked for. */
const IS_PRIVATE = window.isSecureContext;
show($("token-form"), IS_PRIVATE);
if (!IS_PRIVATE) say($("answer"), "Orders need TLS: open this page at an address of api.tls-listen.");

function headers() {
  if (!IS_PRIVATE) throw new Error("a token crosses the network over TLS alone");
  return { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" };
}

async function ask(method, path, body) {
  const answer = await fetch(path, { method, headers: headers(), body: body && JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw new Error([found.title, found.detail].filter(Boolean).map((text) => clean(text)).join(": "));
  return found;
}

$("order-host").addEventListener("change", () => renderButtons());

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  try {
    await ask("GET", "api/v1/token");
    $("token").value = "";
    show($("token-form"), false);
    show($("buttons"), true);
    show($("choice"), true);
    say($("answer"), "The token is taken. Each order asks once more.");
    renderButtons();
    $("buttons").querySelector("button")?.focus();
  } catch (error) {
    token = "";
    say($("answer"), clean(error.message));
  }
});

/** The host whose orders are shown; what moves or stops the VM always goes to the VM's own host. */
function chosen() {
  const id = Number($("order-host").value) || status.host_id;
  return status.hosts[id] ? id : status.host_id;
}

function renderChoice() {
  const able = Object.values(status.hosts).filter((host) => host.local || (host.liveness === "live" && host.api.length));
  keyed($("order-host"), able.map((host) => [host.host_id, host]), (host) => make("option", { value: host.host_id }),
    (option, host) => say(option, `${nameOf(host.host_id)}${host.local ? " (this host)" : ""}`));
}

/** Hosts that could take the VM. */
const heirs = () => Object.values(status.hosts).filter((host) => host.host_id !== status.engine.host && host.liveness === "live" && !host.maintenance);

/** Each: key, label, why it cannot be had (empty: it can), and what the dialog says. */
function orders() {
  const vm = vmName();
  const owner = status.engine.host;
  const gone = owner !== null && status.hosts[owner].liveness !== "live" ? `${nameOf(owner)} does not answer.` : "";
  const elsewhere = owner !== null ? gone : status.engine.up === null ? `Where ${vm} runs is not known.` : `${vm} is down.`;
  const own = status.hosts[chosen()];
  const me = nameOf(chosen());
  const others = heirs();
  const moved = owner === chosen() ? ` ${vm} is on ${me}: it is migrated away first, live.` : "";
  return [
    status.global_maintenance
      ? ["global-off", "End global maintenance", "", "The cluster acts again: the engine is started where it is down, hung hosts are fenced."]
      : ["global-on", "Global maintenance …", "", "On all hosts nothing starts, stops, moves or is fenced. If the engine dies meanwhile, it stays down."],
    own.maintenance
      ? ["local-off", `End maintenance of ${me}`, "", `${me} may run ${vm} again, and gets its score back.`]
      : ["local-on", `Maintenance of ${me} …`, "", `${me} gets score 0 and never runs ${vm}.${moved}`],
    ["migrate", "Migrate …", elsewhere || (others.length ? "" : "No other host could take it."),
      `${vm} moves from ${owner === null ? "its host" : nameOf(owner)} to the host you choose, live: it goes on answering, with a pause of well under a second.`],
    ["start", `Start on ${me}`, status.engine.up ? `${vm} is up already.` : "", `${status.engine.up === null ? "It may run already: that is not known. " : ""}${vm} is started on ${me}, under its lease. If another host holds the lease, that is refused.`],
    ["shutdown", "Shut down …", elsewhere,
      "The guest is asked to shut down: users lose it. Unless global maintenance is set, the cluster starts it again."],
  ];
}

function renderButtons() {
  if (!token) return;
  renderChoice();
  keyed($("buttons"), orders().map((order) => [order[0], order]),
    ([key]) => {
      const button = make("button", { type: "button" });
      button.addEventListener("click", () => confirmOrder(key));
      return button;
    },
    (button, [, label, obstacle]) => {
      say(button, label);
      if (button.disabled !== Boolean(obstacle)) button.disabled = Boolean(obstacle);
      if (button.title !== obstacle) button.title = obstacle;
    });
}

function confirmOrder(key) {
  const [, label, , text] = orders().find((order) => order[0] === key);
  const dialog = $("ask");
  say($("ask-title"), `${label.replace(" …", "")}?`);
  say($("ask-text"), text);
  const setsMode = key === "global-on" || key === "local-on";
  show($("ask-reason-row"), setsMode);
  show($("ask-for-row"), setsMode);
  show($("ask-to-row"), key === "migrate");
  if (key === "migrate") {
    const others = heirs();
    others.sort((a, b) => b.score - a.score);
    $("ask-to").replaceChildren(...others.map((host) => make("option", { value: host.host_id }, `${nameOf(host.host_id)} (score ${host.score})`)));
  }
  dialog.returnValue = "no";
  dialog.showModal();
  $("ask-no").focus();
  dialog.addEventListener("close", () => dialog.returnValue === "yes" && give(key), { once: true });
}

async function give(key) {
  const answer = $("answer");
  say(answer, "Sent …");
  try {
    const [mode, way] = key.split("-");
    const host = ["migrate", "shutdown"].includes(key) ? status.engine.host : chosen();
    const at = host === status.host_id ? "" : `?host=${host}`;
    if (mode === "global" || mode === "local") {
      const body = way === "on"
        ? { on: true, reason: $("ask-reason").value, for_s: Number($("ask-for").value) } : { on: false };
      await ask("PUT", `api/v1/maintenance/${mode}${mode === "local" ? at : ""}`, body);
      say(answer, `${mode} maintenance is ${way === "on" ? "set" : "ended"}.`);
      return;
    }
    const body = key === "migrate" ? { kind: key, target: Number($("ask-to").value) } : { kind: key };
    let order = await ask("POST", `api/v1/orders${at}`, body);
    while (order.state === "waiting" || order.state === "under-way") {
      say(answer, `Order ${order.number}, ${key}: ${order.state} ${clean(order.text)}`.trim());
      await new Promise((resolve) => setTimeout(resolve, 1000));
      order = await ask("GET", `api/v1/orders/${order.number}${at}`);
    }
    say(answer, `${key}: ${order.state}. ${clean(order.text)}`);
  } catch (error) {
    say(answer, `Not done: ${clean(error.message)}`);
  }
}

// On a phone the page is one screen; what is below it opens on demand.
if (window.matchMedia("(max-width: 34rem)").matches) for (const id of ["orders", "scores", "happened"]) $(id).open = false;

begin();
