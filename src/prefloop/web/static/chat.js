// The page of a conversation: sends turns, waits for their answers, has one chosen, ends it.
//
// A piece of HTML comes whole for each state, so the answers appear in one frame. What is sent is kept in this tab until
// the server has it; the keys of turns make a second sending the same turn.

import { startClock } from "./judge/clock.js";
import { draftOfTab, forgetDraft, keepDraft } from "./judge/drafts.js";
import { Keys } from "./judge/keys.js";
import { openPairwise } from "./judge/pairwise.js";
import { openRank } from "./judge/rank.js";
import { Rest } from "./judge/rest.js";
import { watchReveal } from "./judge/reveal.js";
import { openRules } from "./judge/rules.js";
import { deliver, pause, unsent } from "./judge/sending.js";
import { openViews, prepareViews } from "./judge/views.js";
import { t } from "./judge/words.js";
import { fragment, pageData, Refused, request } from "./request.js";
import { toast } from "./toast.js";

const CHOICES = { pairwise: openPairwise, rank: openRank };
const WAITING = { offline: "judge.kept_offline", slow: "judge.server_slow", fast: "base.too_fast", session: "base.session_over" };
const POLL_MS = 500;
const SLOWEST_POLL_MS = 2000;
const HEARTBEAT_MS = 60_000;
const VEIL = "prefloop.unveiled";

const about = pageData("about");
const api = `/api/v1/chats/${about.conversation}`;
const draftName = `prefloop.turn.${about.conversation}`;
const place = document.getElementById("place");
const notices = document.getElementById("notices");
const rest = new Rest(about.break_after_minutes);
let data = {};
let choice = null; // the answers that are to be chosen from
let ending = null; // the form at the end, while it is open
let writing = null; // the time spent on a text of one's own
let piece = 0;
let isSending = false;

const keys = new Keys({
  chosen: about.keys,
  single: about.single_keys,
  onSave: (chosen) => request("PUT", "/api/v1/me/preferences", chosen).catch(explain),
});
const OWN = { send: "Ctrl+Enter", renew: "R", retry: "R", improve: "E", end: "Q", veil: "V", save_improved: "Ctrl+Enter", finish: "Ctrl+Enter" };
Object.assign(keys.page, {
  send: say,
  retry: () => ask("retry", {}),
  renew: () => ask("renew", { renewed: data.renewed }),
  improve: openImprove,
  save_improved: saveImproved,
  end: openEnding,
  finish,
  cancel: closeForms,
  veil: toggleVeil,
  submit,
  note: toggleNote,
  flag,
  help: () => keys.openDialog(),
});

start();

async function start() {
  document.getElementById("today").textContent = "";
  const letter = unsent(); // a reload came in between
  if (letter) await post(letter);
  await show();
}

// --- pieces ---------------------------------------------------------------------------------------------------------

async function show() {
  piece += 1;
  const mine = piece;
  let found;
  place.setAttribute("aria-busy", "true");
  while (found === undefined) {
    try {
      found = await fragment("POST", about.first);
      const task = found.querySelector("#task-data");
      if (task) await prepareViews(found, JSON.parse(task.textContent).address);
    } catch (error) {
      found = undefined;
      if (!(error instanceof Refused) || (error.status >= 400 && error.status < 500 && error.status !== 429)) {
        place.setAttribute("aria-busy", "false");
        explain(error);
        return;
      }
      notice(t(error.status === 429 ? "base.too_fast" : navigator.onLine ? "judge.server_slow" : "base.offline"));
      await pause();
    }
    if (mine !== piece) return;
  }
  notice("");
  close();
  place.replaceChildren(found); // all answers in the same frame
  place.setAttribute("aria-busy", "false");
  open();
}

function close() {
  choice?.clock.stop();
  choice?.reveal.stop();
  choice?.drafts.stop();
  choice?.kind.close?.();
  clearInterval(choice?.heartbeat);
  writing?.stop();
  choice = ending = writing = null;
}

function open() {
  data = JSON.parse(place.querySelector("#chat-data").textContent);
  drawVeil();
  const root = place.querySelector("#task");
  if (root) openChoice(root);
  else useKeys();
  const field = place.querySelector("#turn");
  if (field) openField(field);
  if (data.state === "waiting") poll(piece);
  if (root) {
    place.querySelector("#last-said")?.scrollIntoView({ block: "start" });
    root.querySelector("h1").focus({ preventScroll: true });
  } else {
    scrollTo(0, document.documentElement.scrollHeight);
    (field ?? place.querySelector("h1"))?.focus({ preventScroll: true });
  }
}

function useKeys(more = {}) {
  const labels = Object.fromEntries(Object.keys(OWN).map((one) => [one, t(`chat.${one}`)]));
  keys.use({ ...more, actions: more.actions ?? {}, keys: { ...OWN, ...more.keys }, labels: { ...labels, cancel: t("judge.cancel"), ...more.labels } });
}

async function poll(mine) {
  for (let wait = POLL_MS; mine === piece; wait = Math.min(SLOWEST_POLL_MS, wait * 1.2)) {
    await pause(undefined, wait);
    if (mine !== piece) return;
    try {
      const { state } = await request("GET", `${api}/turns/${data.number}`);
      if (state !== "waiting" && mine === piece && !ending) {
        await show();
        return;
      }
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401 || error.status === 404) {
        explain(error);
        return;
      }
    }
  }
}

// --- one's own turn -------------------------------------------------------------------------------------------------

function openField(field) {
  field.value = sessionStorage.getItem(draftName) ?? "";
  const count = place.querySelector("#characters");
  const draw = () => {
    const left = data.max_characters - field.value.length;
    count.textContent = left < data.max_characters / 5 ? t("chat.characters_left", { count: left }) : "";
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  field.addEventListener("input", () => {
    sessionStorage.setItem(draftName, field.value);
    draw();
  });
  draw();
}

async function say() {
  const field = place.querySelector("#turn");
  if (!field || isSending) return;
  if (!field.value.trim()) {
    toast(t("chat.need_turn"));
    field.focus();
    return;
  }
  const letter = { path: `${api}/turns`, body: { key: randomId(), text: field.value }, token: "", what: "sent" };
  if (await post(letter)) {
    sessionStorage.removeItem(draftName);
    await show();
  }
}

async function ask(what, body) {
  if (isSending || !["shown", "rejected", "failed"].includes(data.state)) return;
  if (what === "renew" && !data.may_renew) {
    toast(t("chat.renewed_enough"));
    return;
  }
  if (await post({ path: `${api}/turns/${data.number}/${what}`, body, token: "", what: "sent" })) await show();
}

// Sends until the server has it; false where it refuses, which is said.
async function post(letter) {
  isSending = true;
  const buttons = [...place.querySelectorAll(".button.primary")];
  for (const one of buttons) one.setAttribute("aria-disabled", "true");
  try {
    return await deliver(letter, { waiting: (why) => notice(t(WAITING[why])) });
  } catch (error) {
    explain(error);
    return null;
  } finally {
    isSending = false;
    notice("");
    for (const one of buttons) one.setAttribute("aria-disabled", "false");
    updateChoice();
  }
}

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
}

// --- choosing -------------------------------------------------------------------------------------------------------

function openChoice(root) {
  const task = JSON.parse(root.querySelector("#task-data").textContent);
  const draft = draftOfTab(task.token) || task.draft || {};
  const views = openViews(root, task.address, { textsChanged: () => choice?.kind.textsChanged?.() });
  const kind = CHOICES[task.kind](root, { data: task, views, changed, keyOf: (action) => keys.keyOf(action) });
  const comment = root.querySelector("#comment");
  choice = { root, task, kind, comment };
  kind.restore(draft.value ?? {});
  comment.value = draft.comment ?? "";
  root.querySelector("#note").hidden = !comment.value;
  comment.addEventListener("input", () => changed(""));
  choice.clock = startClock((worked) => {
    rest.add(worked);
    updateChoice();
  });
  choice.clock.restore(draft);
  choice.reveal = watchReveal(root, updateChoice);
  choice.drafts = keepDraft(task.token, () => ({ value: kind.value(), comment: comment.value }), times, {});
  choice.heartbeat = setInterval(beat, HEARTBEAT_MS);
  const go = (position) => () => root.querySelector(`[data-text="${position}"]`).focus();
  const sides = root.querySelector('[data-action="focus_a"]') ? { focus_a: go(0), focus_b: go(1) } : {};
  choice.keys = { ...kind, actions: { ...views.actions, ...sides, ...kind.actions } };
  useKeys(choice.keys);
  updateChoice();
}

const times = () => ({ active_ms: choice.clock.activeMs(), first_action_ms: choice.clock.firstActionMs() });

function changed(said) {
  if (ending) return;
  choice?.clock.acted();
  updateChoice();
  if (said) document.getElementById("said").textContent = said;
}

function hindrance() {
  const unread = choice.reveal.unread();
  if (unread.length) return t("judge.need_reading", { letters: unread.map((one) => "ABCDEFGHI"[one]).join(", ") });
  const left = Math.ceil((choice.task.dwell_ms - choice.clock.visibleMs()) / 1000);
  return left > 0 ? t("judge.need_seconds", { seconds: left }) : choice.kind.problem();
}

function updateChoice() {
  if (!choice) return;
  const why = isSending ? t("judge.sending") : hindrance();
  const status = choice.root.querySelector("#status");
  if (status.textContent !== why) status.textContent = why;
  choice.root.querySelector("#submit").setAttribute("aria-disabled", String(why !== ""));
}

async function submit() {
  if (!choice || isSending) return;
  const why = hindrance();
  if (why) {
    toast(why);
    return;
  }
  const { token } = choice.task;
  const body = { value: choice.kind.value(), comment: choice.comment.value, ...times() };
  if (await post({ path: `/api/v1/leases/${token}/submit`, body, token, what: "sent" })) forgetDraft(token);
  if (await rest.propose()) location.href = "/";
  else await show(); // also where another tab was faster
}

async function beat() {
  if (document.visibilityState !== "visible" || !choice || isSending) return;
  try {
    await request("POST", `/api/v1/leases/${choice.task.token}/heartbeat`);
  } catch (error) {
    // one that ran out still counts: nobody else gets it
    if (!(error instanceof Refused)) throw error;
    if (error.status === 404) await show();
  }
}

function toggleNote() {
  const box = choice?.root.querySelector("#note");
  if (!box) return;
  box.hidden = !box.hidden;
  choice.root.querySelector('[data-action="note"]').setAttribute("aria-expanded", String(!box.hidden));
  if (!box.hidden) box.querySelector("textarea").focus();
}

async function flag() {
  if (!choice) return;
  const { token } = choice.task;
  const dialog = document.getElementById("flag-dialog");
  dialog.querySelector("form").reset();
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "send") return;
  try {
    await request("POST", `/api/v1/leases/${token}/flag`, Object.fromEntries(new FormData(dialog.querySelector("form"))));
    toast(t("judge.flagged"));
  } catch (error) {
    explain(error);
  }
}

// --- a better answer, and the end -----------------------------------------------------------------------------------

function openForm(id) {
  closeForms();
  const template = place.querySelector(`#${id}-form`);
  if (!template) return null;
  const box = template.content.firstElementChild.cloneNode(true);
  template.after(box);
  writing = startClock((worked) => rest.add(worked));
  place.querySelector("#composer")?.setAttribute("hidden", "");
  place.querySelector("#task")?.setAttribute("hidden", "");
  return box;
}

function closeForms() {
  const wasOpen = ending !== null || writing !== null;
  writing?.stop();
  ending = writing = null;
  for (const one of place.querySelectorAll(".own-form")) one.remove();
  place.querySelector("#composer")?.removeAttribute("hidden");
  place.querySelector("#task")?.removeAttribute("hidden");
  useKeys(choice?.keys);
  if (wasOpen) (place.querySelector("#turn") ?? place.querySelector("h1"))?.focus({ preventScroll: true });
}

function openImprove() {
  if (data.kind !== "live" || !["chosen", "rejected"].includes(data.state)) return;
  const box = openForm("improve");
  const field = box.querySelector("textarea");
  field.value = data.answer ?? "";
  field.addEventListener("input", () => writing?.acted());
  useKeys({ actions: { save_improved: saveImproved } });
  box.scrollIntoView({ block: "nearest" });
  field.focus();
}

async function saveImproved() {
  const field = place.querySelector("#improved");
  if (!field || !writing || isSending) return;
  if (!field.value.trim()) {
    toast(t("judge.need_text"));
    return;
  }
  const body = { value: { text: field.value }, active_ms: writing.activeMs(), first_action_ms: writing.firstActionMs() };
  if (await post({ path: `${api}/turns/${data.number}/improve`, body, token: "", what: "sent" })) await show();
}

function openEnding() {
  if (!data.is_open) return;
  const box = openForm("ending");
  if (!box) return;
  const scales = openRules(box, { changed: (said) => {
    writing?.acted();
    box.querySelector("#end-problem").textContent = "";
    if (said) document.getElementById("said").textContent = said;
  } });
  ending = { box, scales };
  const hasScales = box.querySelector("[data-rule], [data-scale]") !== null;
  useKeys(hasScales ? { ...scales, actions: { ...scales.actions, finish } } : { actions: { finish } });
  box.scrollIntoView({ block: "nearest" });
  box.querySelector("h2").focus({ preventScroll: true });
}

async function finish() {
  if (!ending || isSending) return;
  const { box, scales } = ending;
  const comment = box.querySelector("#end-comment").value;
  const value = scales.value();
  const body = { comment };
  if (data.kind === "live") {
    if (value.attack) body.rating = value.attack.rating;
  } else if (data.has_answer) {
    const why = scales.problem();
    if (why) {
      box.querySelector("#end-problem").textContent = why;
      return;
    }
    body.submission = { value, comment, active_ms: writing.activeMs(), first_action_ms: writing.firstActionMs() };
  }
  if (await post({ path: `${api}/end`, body, token: "", what: "sent" })) await show();
}

// --- what may disturb -----------------------------------------------------------------------------------------------

function toggleVeil() {
  if (sessionStorage.getItem(VEIL)) sessionStorage.removeItem(VEIL);
  else sessionStorage.setItem(VEIL, "1");
  drawVeil();
}

function drawVeil() {
  const isVeiled = data.kind === "probe" && !sessionStorage.getItem(VEIL);
  for (const one of place.querySelectorAll("#conversation, #task")) one.classList.toggle("veiled", isVeiled);
  place.querySelector('[data-action="veil"]')?.setAttribute("aria-pressed", String(isVeiled));
}

// --- telling --------------------------------------------------------------------------------------------------------

document.body.append(Object.assign(document.createElement("p"), { id: "said", className: "visually-hidden", role: "status" }));

function notice(words) {
  notices.replaceChildren();
  if (!words) return;
  const box = Object.assign(document.createElement("div"), { className: "notice warn", textContent: words });
  box.setAttribute("role", "status");
  notices.append(box);
}

function explain(error) {
  if (!(error instanceof Refused)) throw error;
  const words = { 0: t("base.offline"), 401: t("base.session_over"), 429: t("base.too_fast") }[error.status];
  toast(words ?? (error.message || t("base.failed")), { kind: "bad", seconds: 10 });
}
