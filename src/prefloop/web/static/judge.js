// The page where people judge: gets a task, follows what is done to it, sends the answer, swaps in the next one.

import { openForm } from "./judge/form.js";
import { draftOfTab, forgetDraft, keepDraft } from "./judge/drafts.js";
import { Keys } from "./judge/keys.js";
import { openPairwise } from "./judge/pairwise.js";
import { openRank } from "./judge/rank.js";
import { Rest } from "./judge/rest.js";
import { watchReveal, watchSizes } from "./judge/reveal.js";
import { deliver, pause, unsent } from "./judge/sending.js";
import { startClock } from "./judge/clock.js";
import { openPrompt } from "./judge/prompting.js";
import { openRules } from "./judge/rules.js";
import { openSteps } from "./judge/steps.js";
import { explain, instead, notice, say } from "./judge/telling.js";
import { openViews, prepareViews } from "./judge/views.js";
import { t } from "./judge/words.js";
import { openDemonstration, openEdit } from "./judge/writing.js";
import { fragment, pageData, Refused, request } from "./request.js";
import { toast } from "./toast.js";

const KINDS = {
  pairwise: openPairwise,
  rank: openRank,
  form: openForm,
  rules: openRules,
  prompt: openPrompt,
  edit: openEdit,
  demonstration: openDemonstration,
  steps: openSteps,
};
const HEARTBEAT_MS = 60_000;
const WAITING = { offline: "judge.kept_offline", slow: "judge.server_slow", fast: "base.too_fast", session: "base.session_over" };

const about = pageData("about");
const nextPath = `/judge/${about.project}/next`;
const place = document.getElementById("place");
const rest = new Rest(about.break_after_minutes);
let today = about.today;
let task = null;
let turn = 0; // which piece was asked for last

const keys = new Keys({
  chosen: about.keys,
  single: about.single_keys,
  onSave: (chosen) => request("PUT", "/api/v1/me/preferences", chosen).catch((error) => explain(error)),
});

Object.assign(keys.page, {
  submit,
  save: saveDraft,
  skip: () => ask("skip"),
  flag: () => ask("flag"),
  undo,
  note: toggleNote,
  help: () => keys.openDialog(),
  back,
  again: () => next(),
  acknowledge,
  go_on: goOn,
});

start();

async function start() {
  countToday(0);
  const letter = unsent(); // a reload came in between
  if (letter) await sendOn(letter);
  const [method, path] = about.first === nextPath ? ["POST", nextPath] : ["GET", about.first];
  await show(method, path);
}

async function sendOn(letter) {
  try {
    const answer = await deliver(letter, { waiting: (why) => notice(t(WAITING[why])) });
    if (answer) arrived(letter, answer);
  } catch (error) {
    explain(error);
  }
  notice("");
}

// --- getting a task -----------------------------------------------------------------------------------------------------

async function next() {
  if (await rest.propose()) location.href = "/";
  else await show("POST", nextPath);
}

async function show(method, path) {
  turn += 1;
  const mine = turn;
  let piece;
  place.setAttribute("aria-busy", "true");
  while (piece === undefined) {
    try {
      piece = await fragment(method, path);
      const data = piece.querySelector("#task-data");
      if (data) await prepareViews(piece, JSON.parse(data.textContent).address);
    } catch (error) {
      piece = undefined;
      if (error.to) {
        location.href = error.to;
        return;
      }
      if (!(error instanceof Refused) || (error.status >= 400 && error.status < 500 && error.status !== 429)) {
        place.setAttribute("aria-busy", "false");
        if (!task && error instanceof Refused) instead(error.message || t("base.failed"));
        else explain(error);
        return;
      }
      notice(t(error.status === 429 ? "base.too_fast" : error.status === 0 && !navigator.onLine ? "base.offline" : "judge.server_slow"));
      await pause();
    }
    if (mine !== turn) return;
  }
  notice("");
  closeTask();
  keys.own = { actions: {}, keys: {}, labels: {} };
  place.replaceChildren(piece); // both sides in the same frame
  place.setAttribute("aria-busy", "false");
  scrollTo(0, 0);
  const root = place.querySelector("#task");
  if (root) openTask(root);
  else keys.refresh();
  place.querySelector("h1")?.focus({ preventScroll: true });
}

function openTask(root) {
  const data = JSON.parse(root.querySelector("#task-data").textContent);
  const draft = (data.token && draftOfTab(data.token)) || data.draft || {};
  const views = openViews(root, data.address, { textsChanged: () => task?.kind.textsChanged?.() });
  const kind = KINDS[data.kind](root, { data, views, changed, keyOf: (action) => keys.keyOf(action) });
  const comment = root.querySelector("#comment");
  task = { root, data, kind, comment, isSending: false, client_uuid: crypto.randomUUID?.() ?? randomId() };
  kind.restore(draft.value ?? {});
  if (draft.comment) {
    comment.value = draft.comment;
    openNote();
  }
  task.clock = startClock((worked) => {
    rest.add(worked);
    update();
  });
  task.clock.restore(draft);
  task.reveal = watchReveal(root, update);
  task.stopSizes = watchSizes(root);
  comment.addEventListener("input", () => changed(""));
  if (data.frozen) freeze(root);
  if (data.token) {
    const times = () => ({ active_ms: task.clock.activeMs(), first_action_ms: task.clock.firstActionMs() });
    task.drafts = keepDraft(data.token, () => ({ value: kind.value(), comment: comment.value }), times, {});
    task.heartbeat = setInterval(heartbeat, HEARTBEAT_MS);
  }
  const go = (position) => () => {
    const text = root.querySelector(`[data-text="${position}"]`);
    text.focus({ preventScroll: true });
    text.closest(".answer").scrollIntoView({ block: "nearest" });
  };
  const sides = root.querySelector('[data-action="focus_a"]') ? { focus_a: go(0), focus_b: go(1) } : {};
  keys.use({ ...kind, actions: { ...kind.actions, ...sides, ...views.actions, ...kind.actions } });
  update();
}

function closeTask() {
  if (!task) return;
  task.clock.stop();
  task.reveal.stop();
  task.stopSizes();
  task.drafts?.stop();
  task.kind.close?.();
  clearInterval(task.heartbeat);
  task = null;
}

function freeze(root) {
  for (const one of root.querySelectorAll("input, textarea")) one.disabled = true;
}

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
}

// --- while it is being judged ---------------------------------------------------------------------------------------

// `said` is read to those who cannot see what a key did
function changed(said) {
  if (!task) return;
  task.clock.acted();
  update();
  if (said) say(said);
}

// Why it cannot be sent yet; empty when it can.
function hindrance() {
  const unread = task.reveal.unread();
  if (task.data.token && unread.length) {
    return t("judge.need_reading", { letters: unread.map((one) => "ABCDEFGHI"[one]).join(", ") });
  }
  const left = Math.ceil((task.data.dwell_ms - task.clock.visibleMs()) / 1000);
  if (left > 0) return t("judge.need_seconds", { seconds: left });
  return task.kind.problem();
}

function update() {
  if (!task || task.data.frozen) return;
  const why = task.isSending ? t("judge.sending") : hindrance();
  const status = task.root.querySelector("#status");
  if (status.textContent !== why) status.textContent = why;
  task.root.querySelector("#submit").setAttribute("aria-disabled", String(why !== ""));
}

function openNote() {
  place.querySelector("#note").hidden = false;
  place.querySelector('[data-action="note"]')?.setAttribute("aria-expanded", "true");
}

// The key goes to the note; once more closes it, unless something is written there.
function toggleNote() {
  const box = place.querySelector("#note");
  if (!box) return;
  if (box.hidden || task.comment.value) {
    openNote();
    task.comment.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
  } else {
    box.hidden = true;
    place.querySelector('[data-action="note"]')?.setAttribute("aria-expanded", "false");
  }
}

async function saveDraft() {
  if (!task?.drafts) return;
  toast((await task.drafts.save()) ? t("judge.draft_saved") : t("base.offline"));
}

async function heartbeat() {
  if (document.visibilityState !== "visible" || !task || task.isSending) return;
  const mine = task;
  try {
    await request("POST", `/api/v1/leases/${mine.data.token}/heartbeat`);
  } catch (error) {
    if (mine !== task || !(error instanceof Refused)) return;
    if (error.status === 404) answeredElsewhere();
    if (error.status === 409) {
      clearInterval(mine.heartbeat);
      notice(t("judge.ran_out"));
    }
  }
}
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && task?.data.token && heartbeat());

// --- sending --------------------------------------------------------------------------------------------------------

async function submit() {
  if (!task || task.isSending || task.data.frozen) return;
  const why = hindrance();
  if (why) {
    toast(why);
    pointAtUnread();
    return;
  }
  const { token, judgement } = task.data;
  const body = {
    value: task.kind.value(),
    comment: task.comment.value,
    active_ms: task.clock.activeMs(),
    first_action_ms: task.clock.firstActionMs(),
  };
  if (token) await send({ path: `/api/v1/leases/${token}/submit`, body, token, what: "sent" });
  else {
    const change = { ...body, client_uuid: task.client_uuid };
    await send({ path: `/api/v1/judgements/${judgement}/revise`, body: change, token: "", what: "changed" });
  }
}

function pointAtUnread() {
  const [first] = task.reveal.unread();
  if (first === undefined) return;
  const answer = task.root.querySelector(`.answer[data-position="${first}"]`);
  (answer.querySelector("[data-unfold]") ?? answer.querySelector("[data-end]")).scrollIntoView({ block: "center", behavior: "smooth" });
  answer.querySelector("[data-unfold]")?.focus({ preventScroll: true });
}

async function send(letter) {
  const mine = task;
  mine.isSending = true;
  update();
  const stop = new AbortController();
  const waiting = (why) =>
    notice(
      t(WAITING[why]),
      why === "session" ? { label: t("judge.log_in"), href: "/login" } : { label: t("judge.edit_again"), act: () => stop.abort() },
    );
  try {
    const answer = await deliver(letter, { waiting, signal: stop.signal });
    notice("");
    if (mine !== task) return;
    mine.isSending = false;
    if (answer === null) {
      update();
      return;
    }
    arrived(letter, answer);
    if (letter.what === "changed" && about.first !== nextPath) location.href = "/history";
    else await next();
  } catch (error) {
    mine.isSending = false;
    notice("");
    if (mine !== task) return;
    update();
    if (error instanceof Refused && (error.status === 409 || error.status === 404) && letter.token) answeredElsewhere();
    else explain(error);
  }
}

function arrived(letter, answer) {
  if (letter.token) forgetDraft(letter.token);
  if (letter.what === "sent") countToday(1);
  const special = { surplus: "judge.is_surplus", late: "judge.is_late" }[answer.state];
  toast(t(letter.what === "sent" && special ? special : `judge.${letter.what}`), { seconds: special ? 6 : 1.5 });
}

function countToday(more) {
  today += more;
  document.getElementById("today").textContent = t("judge.today", { count: today });
}

async function ask(what) {
  if (!task?.data.token || task.isSending) return;
  const { token } = task.data;
  const dialog = document.getElementById(`${what}-dialog`);
  const form = dialog.querySelector("form");
  form.reset();
  dialog.returnValue = "cancel";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "send" || task?.data.token !== token) return;
  const body = Object.fromEntries(new FormData(form));
  if (what === "skip") {
    await send({ path: `/api/v1/leases/${token}/skip`, body, token, what: "skipped" });
    return;
  }
  try {
    await request("POST", `/api/v1/leases/${token}/flag`, body);
    toast(t("judge.flagged"));
  } catch (error) {
    explain(error);
  }
}

function answeredElsewhere() {
  const dialog = document.getElementById("elsewhere-dialog");
  if (dialog.open) return;
  dialog.returnValue = "next";
  dialog.showModal();
  dialog.addEventListener("close", () => next(), { once: true });
}

// --- changing one's mind --------------------------------------------------------------------------------------------

async function undo() {
  if (task?.isSending) return;
  try {
    await task?.drafts?.save();
    const [last] = await request("GET", "/api/v1/judgements/mine?limit=1");
    if (last) await show("GET", `/history/${last.id}/task`);
    else toast(t("judge.not_yet"));
  } catch (error) {
    explain(error);
  }
}

function back() {
  if (about.first === nextPath) show("POST", nextPath);
  else location.href = "/history";
}

async function acknowledge() {
  const unread = place.querySelector("#unread");
  if (!unread) return;
  try {
    await request("POST", `/judge/${about.project}/guidelines`, { version: Number(unread.dataset.version) });
  } catch (error) {
    explain(error);
  }
  await show("POST", nextPath);
}

// Feedback on a task of the qualification was read.
async function goOn() {
  const told = place.querySelector("#feedback");
  if (!told) return;
  try {
    await request("POST", `/judge/${about.project}/feedback`, { judgement: Number(told.dataset.judgement) });
  } catch (error) {
    explain(error);
  }
  await show("POST", nextPath);
}
