// SPDX-License-Identifier: LGPL-2.1-or-later
// The page in Cockpit: asks and orders by the command `ha-agent`, as the user who has logged in.
//
// Rules of this file:
// 1. What other hosts wrote becomes text nodes, never markup.
// 2. Each order asks once more, and runs the command that an administrator would type. Who is no
//    administrator in Cockpit gets the command's own refusal.
"use strict";

const EVERY_MS = 3000;
const $ = (id) => document.getElementById(id);
let status = null;

const clean = (text, most = 400) => String(text ?? "").slice(0, most).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

/** Runs `ha-agent` with these words; its output, or the reason why not. */
async function run(words, superuser) {
  try {
    return { ok: true, text: await cockpit.spawn(["ha-agent", ...words], { superuser, err: "message", environ: ["LC_ALL=C.UTF-8"] }) };
  } catch (error) {
    return { ok: false, code: error.exit_status ?? null, text: clean(error.message || error.problem) };
  }
}

async function look() {
  const found = await run(["--status", "--json"], "try");
  try {
    if (found.text.trimStart().startsWith("{")) status = JSON.parse(found.text);
    else throw new Error(found.text);
    render();
  } catch (error) {
    // What was said last is no word on now.
    status = null;
    $("now").className = "bad";
    say("now", "This host’s broker gives no status");
    say("bound", clean(error.message));
    for (const part of ["wrong-part", "vms-part", "hosts-part", "orders-part"]) $(part).hidden = true;
    await offerJoin();
  }
}

async function offerJoin() {
  const there = await cockpit.file("/etc/ha-agent/ha-agent.toml", { superuser: "try" }).read().then((text) => text !== null, () => true);
  $("join-part").hidden = there;
}

function nameOf(id) {
  return clean(status.hosts[id]?.hostname ?? `host ${id}`, 100);
}

const several = () => (status.vms ?? []).length > 1;

/** The engine: a sentence, and how well it is. */
function engineNow() {
  const { engine } = status;
  const name = clean(engine.name, 60) || "The VM";
  const where = engine.host === null ? "" : ` on ${nameOf(engine.host)}`;
  if (engine.up === null) return { level: "warn", text: `Whether ${name} is up is not known: ${clean(engine.known)}` };
  if (!engine.up) return { level: "bad", text: `${name} is down: ${clean(engine.known) || "no host has it up"}` };
  if (engine.reached === false) return { level: "warn", text: `${name} is up, but no other host reaches it,${where}` };
  if (engine.healthy) return { level: "good", text: `${name} is up and healthy${where}` };
  if (status.hosts[engine.host]?.state === "EngineStarting") return { level: "warn", text: `${name} is up and boots${where}` };
  return { level: "warn", text: `${name} is up, ${engine.healthy === null ? "its health is not known" : "not healthy"},${where}` };
}

/** All VMs, where there are several: the same. */
function allNow() {
  const wanted = status.vms.filter((vm) => vm.want === "up" || vm.up);
  const up = wanted.filter((vm) => vm.up);
  const well = up.filter((vm) => vm.healthy);
  if (well.length === 1 && wanted.length === 1) return { level: "good", text: `${clean(wanted[0].name)}, the only VM that is to run, is up and healthy` };
  if (well.length === wanted.length) return { level: "good", text: `All ${wanted.length} VMs are up and healthy` };
  return { level: wanted.some((vm) => vm.up === false) ? "bad" : "warn", text: `${up.length} of ${wanted.length} VMs are up, ${well.length} healthy` };
}

function vmText(vm) {
  if (vm.state !== "up") return clean(vm.state, 20);
  return vm.healthy ? "up, healthy" : vm.healthy === null ? "up, health not known" : "up, NOT healthy";
}

function renderVms() {
  $("vms-part").hidden = !several();
  if (!several()) return;
  $("vms").replaceChildren(...status.vms.map((vm) => {
    const row = document.createElement("tr");
    const head = make("th", clean(vm.name, 60));
    head.scope = "row";
    const state = make("td", vmText(vm));
    state.className = vm.up && vm.healthy ? "good" : vm.state === "off" ? "" : "bad";
    row.append(head, state, make("td", vm.host === null ? "–" : nameOf(vm.host)), make("td", clean(vm.reason)));
    return row;
  }));
}

/** A standby that could take the VM is ready; the reference's name of its state stands behind. */
function stateText(host) {
  const state = clean(host.state, 60);
  const ready = host.liveness === "live" && host.state === "EngineDown" && host.score > 0 && !host.maintenance;
  return ready ? `ready (${state})` : state;
}

function render() {
  const { engine, bound } = status;
  const vm = several() ? "engine" : clean(engine.name, 60) || "the VM";
  const now = several() && engine.reached !== false ? allNow() : engineNow();
  say("now", now.text);
  $("now").className = now.level;
  say("bound", status.global_maintenance ? "Global maintenance: nothing starts, stops, moves or is fenced."
    : bound?.held ? `If ${nameOf(engine.host)} died now, ${vm} would not be started: ${clean(bound.held)}`
      : bound?.total_s ? `If ${nameOf(engine.host)} died now, ${vm} would answer again in about ${Math.round(bound.total_s)} s (proof by ${clean(bound.by)}).` : "");
  $("hosts").replaceChildren(...Object.values(status.hosts).map((host) => {
    const row = document.createElement("tr");
    const dead = host.liveness === "silent" ? `SILENT, last word ${host.age_s === null ? "never" : `${Math.round(host.age_s)} s ago`}` : host.liveness;
    const head = make("th", nameOf(host.host_id));
    head.scope = "row";
    const live = make("td", clean(dead, 60));
    live.className = host.liveness === "live" ? "good" : "bad";
    row.append(head, live, make("td", stateText(host)), make("td", host.liveness === "live" ? String(host.score) : "–"));
    return row;
  }));
  renderVms();
  for (const part of ["hosts-part", "orders-part"]) $(part).hidden = false;
  $("join-part").hidden = true;
  renderOrders();
}

async function lookForTroubles() {
  if (!status) return;
  const found = await run(["--status"], "try");
  const lines = found.text.split("\n");
  const at = lines.findIndex((line) => line.startsWith("wrong:"));
  const wrong = [];
  if (at >= 0) for (const line of lines.slice(at + 1)) if (/^\s+\S/.test(line)) wrong.push(clean(line.trim())); else break;
  $("wrong-part").hidden = !wrong.length || !status;
  $("wrong").replaceChildren(...wrong.map((line) => make("li", line)));
}

function chosen() {
  return status.hosts[$("host").value] ? $("host").value : String(status.host_id);
}

/** Label, words of the command, what it does, and whether it can be had. */
function orders() {
  const id = chosen();
  const host = status.hosts[id];
  const at = host.local ? [] : ["--host", id];
  const name = nameOf(id);
  return [
    status.global_maintenance
      ? ["End global maintenance", ["maintenance", "none"], "The cluster acts again.", true]
      : ["Global maintenance for 8 hours", ["maintenance", "global", "--for", "8h", "--reason", "set in Cockpit"], "On all hosts nothing starts, stops, moves or is fenced.", true],
    host.maintenance
      ? [`End maintenance of ${name}`, ["maintenance", "none", ...at], `${name} may run the VM again.`, true]
      : [`Maintenance of ${name} for 8 hours`, ["maintenance", "local", "--for", "8h", "--reason", "set in Cockpit", ...at], `${name} is emptied and runs no VM meanwhile.`, true],
    [`Migrate to ${name}`, ["migrate", "--to", id, ...(status.engine.host === null || status.hosts[status.engine.host]?.local ? [] : ["--host", String(status.engine.host)])], `The VM moves to ${name}, live.`, status.engine.up === true && String(status.engine.host) !== id],
  ];
}

function renderOrders() {
  const able = Object.values(status.hosts).filter((host) => host.liveness === "live");
  const ids = able.map((host) => String(host.host_id)).join(",");
  const list = $("host");
  if (list.dataset.ids !== ids) {
    const before = list.value;
    list.dataset.ids = ids;
    list.replaceChildren(...able.map((host) => new Option(nameOf(host.host_id), host.host_id, false, String(host.host_id) === before)));
  }
  const wanted = orders();
  if ($("buttons").dataset.labels === JSON.stringify(wanted)) return;
  $("buttons").dataset.labels = JSON.stringify(wanted);
  $("buttons").replaceChildren(...wanted.flatMap(([label, words, text, can]) => {
    const button = make("button", label);
    button.type = "button";
    button.disabled = !can;
    button.addEventListener("click", () => confirmOrder(label, words, text));
    return [button, " "];
  }));
}

function confirmOrder(label, words, text) {
  say("ask-title", `${label}?`);
  say("ask-text", `${text} Command: ha-agent ${words.join(" ")}`);
  const dialog = $("ask");
  dialog.returnValue = "no";
  dialog.addEventListener("close", () => dialog.returnValue === "yes" && give(words), { once: true });
  dialog.showModal();
}

async function give(words) {
  $("answer").hidden = false;
  say("answer", `ha-agent ${words.join(" ")} …`);
  const found = await run(words, "require");
  say("answer", found.ok ? found.text.trim() || "Done." : `Not done: ${found.text}`);
  look();
}

$("host").addEventListener("change", () => status && renderOrders());
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  confirmOrder("Join", ["join", "--yes", $("token").value.trim()], "This host becomes a member of that cluster.");
});

async function live() {
  await look();
  await lookForTroubles();
  setTimeout(live, EVERY_MS);
}

live();
