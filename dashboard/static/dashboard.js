// Keeps the page current: durations tick, times are the viewer's, and what changed is fetched every two seconds.
"use strict";

const EVERY = 2000, LONGEST = 30000; // milliseconds
const state = document.getElementById("state");
const news = document.getElementById("news"), search = document.getElementById("search");
const shown = new Map(), waiting = new Map(); // by id, each part of the page as the server sent it; those not shown yet
let wait = EVERY, ahead = 0, tag = "", timer, answered = new Date(), touched = false;

const KEY = "notify", told = new Set(); // ids of what was worth a notification

function localize(root) {
  for (const each of root.querySelectorAll("[data-shape]")) {
    const at = new Date(each.dateTime ?? each.dataset.at), shape = each.dataset.shape;
    if (shape === "day") {
      each.textContent = at.toLocaleDateString([], { month: "short", day: "numeric" });
      continue;
    }
    const options = { hour: "2-digit", minute: "2-digit", second: shape === "second" ? "2-digit" : undefined };
    const undated = shape === "hour" || at.toDateString() === new Date().toDateString();
    each.textContent = at.toLocaleString([], undated ? options : { month: "short", day: "numeric", ...options });
  }
}

function tick() {
  for (const each of document.querySelectorAll("[data-since]")) {
    const seconds = Math.max(0, Math.floor((Date.now() + ahead - Date.parse(each.dataset.since)) / 1000));
    const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
    each.textContent = h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
  }
}

function show(html) {
  for (const part of new DOMParser().parseFromString(html, "text/html").querySelectorAll(".part")) {
    if (shown.get(part.id) === part.outerHTML) waiting.delete(part.id);
    else waiting.set(part.id, part);
  }
  showWaiting(false);
}

// Nothing is taken from under a finger, a mouse, or a text that is being selected.
function isHeld(part) {
  const selection = getSelection();
  const selected = selection.type === "Range" && selection.containsNode(part, true);
  return !document.hidden && (selected || touched || (matchMedia("(hover: hover)").matches && part.matches(".waits:hover")));
}

function showWaiting(all) {
  const focused = document.activeElement.id;
  for (const [id, part] of waiting) {
    const old = document.getElementById(id);
    if (!all && isHeld(old)) continue;
    waiting.delete(id);
    shown.set(id, part.outerHTML);
    localize(part);
    for (const summary of part.querySelectorAll("summary"))
      summary.parentElement.open = document.getElementById(summary.id)?.parentElement.open ?? false;
    old.replaceWith(part);
  }
  if (document.activeElement.id !== focused) document.getElementById(focused)?.focus({ preventScroll: true });
  const links = waiting.get("recent")?.querySelectorAll(".who a") ?? [];
  const calls = [...links].filter((link) => !document.getElementById(link.id)).length;
  news.hidden = !waiting.size;
  news.textContent = calls ? `${calls} new call${calls > 1 ? "s" : ""}` : "Show what is new";
  tick();
}

function say(text) {
  if (state.textContent !== text) state.textContent = text; // each change is read out
  document.body.className = text === "Live" ? "live" : "behind";
}

async function poll() {
  if (document.hidden && !notifying()) return;
  try {
    const headers = { "If-None-Match": tag }, signal = AbortSignal.timeout(10000);
    const answer = await fetch(state.dataset.live, { headers, signal, cache: "no-store" });
    if (!answer.ok && answer.status !== 304) throw new Error(answer.status);
    const off = Date.parse(answer.headers.get("Date")) - Date.now();
    if (Math.abs(off - ahead) > 2000) ahead = off; // the viewer's clock is wrong
    if (answer.ok) show(await answer.text()), notify(false);
    [tag, wait, answered] = [answer.headers.get("ETag"), EVERY, new Date()];
    say("Live");
  } catch {
    wait = Math.min(2 * wait, LONGEST);
    say(`Not live since ${answered.toLocaleTimeString()}: trying again`);
  }
  clearTimeout(timer);
  timer = setTimeout(poll, wait);
}

// The form shows times in the viewer's zone; the URL has them in UTC, so that it says the same to everybody.
function zone() {
  const name = document.getElementById("zone"), two = (number) => String(number).padStart(2, "0");
  if (name) name.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  for (const input of document.querySelectorAll("[data-time]")) {
    const at = new Date(input.dataset.time);
    if (isNaN(at)) continue;
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    input.value = `${day}T${two(at.getHours())}:${two(at.getMinutes())}`;
  }
  document.querySelector("[data-time]")?.form.addEventListener("formdata", ({ formData }) => {
    for (const [key, value] of [...formData]) {
      if (!value) formData.delete(key);
      else if (key === "since" || key === "until") formData.set(key, new Date(value).toISOString().replace(":00.000", ""));
    }
  });
}

function notifying() {
  return "Notification" in window && Notification.permission === "granted" && localStorage.getItem(KEY) === "yes";
}

function notify(first) {
  for (const each of document.querySelectorAll("[data-notify]")) {
    if (told.has(each.dataset.notify)) continue;
    told.add(each.dataset.notify);
    const text = (each.querySelector("p b") ?? each).innerText.replace(/\s+/g, " ").trim();
    if (!first && notifying()) new Notification(each.matches("tr") ? "A call failed" : "Needs attention", { body: text });
  }
}

function offer(button) {
  const label = () => button.setAttribute("aria-pressed", notifying());
  button.hidden = !("Notification" in window);
  button.addEventListener("click", async () => {
    localStorage.setItem(KEY, notifying() ? "no" : "yes");
    if (localStorage.getItem(KEY) === "yes") await Notification.requestPermission();
    label();
  });
  label();
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  event.preventDefault();
  search.focus();
  search.select();
});
for (const part of document.querySelectorAll(".part")) shown.set(part.id, part.outerHTML);
localize(document);
zone();
tick();
if (state) {
  for (const type of ["pointerdown", "pointerup", "pointercancel"])
    document.addEventListener(type, (event) => (touched = type === "pointerdown" && event.pointerType !== "mouse"));
  setInterval(() => document.body.className === "behind" || showWaiting(false), 1000);
  news.addEventListener("click", () => showWaiting(true));
  const button = document.getElementById("notify");
  if (button) notify(true), offer(button);
  say("Live");
  timer = setTimeout(poll, EVERY);
  document.addEventListener("visibilitychange", poll);
}
