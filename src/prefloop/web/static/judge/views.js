// How the texts of a task are shown: Markdown or plain, long lines wrapped or not, differences marked.
// The choice of plain and of long lines stays for the tasks that follow.

import { request } from "../request.js";

const kept = { raw: false, nowrap: false };

// Puts plain texts into a task before it is shown, so that nothing changes under the reader's eyes.
export async function prepareViews(piece, address) {
  const root = piece.querySelector("#task");
  if (root && kept.raw) put(root, await request("GET", `${address}/texts?form=raw`));
}

export function openViews(root, address, { textsChanged }) {
  let shown = kept.raw ? "raw" : "markdown";
  const forms = new Map();
  if (shown === "markdown") forms.set("markdown", taken(root));
  root.classList.toggle("nowrap", kept.nowrap);
  buttons();

  function buttons() {
    for (const [name, isOn] of [["raw", shown === "raw"], ["diff", shown === "diff"], ["wrap", kept.nowrap]]) {
      root.querySelector(`[data-action="${name}"]`)?.setAttribute("aria-pressed", String(isOn));
    }
  }

  async function show(form) {
    if (!forms.has(form)) forms.set(form, await request("GET", `${address}/texts?form=${form}`));
    put(root, forms.get(form));
    shown = form;
    if (form !== "diff") kept.raw = form === "raw";
    buttons();
    textsChanged();
  }

  const actions = {
    raw: () => show(shown === "raw" ? "markdown" : "raw"),
    diff: () => show(shown === "diff" ? (kept.raw ? "raw" : "markdown") : "diff"),
    wrap() {
      kept.nowrap = !kept.nowrap;
      root.classList.toggle("nowrap", kept.nowrap);
      buttons();
    },
  };
  if (!root.querySelector('[data-action="diff"]')) delete actions.diff;

  return {
    isRaw: () => shown === "raw",
    showRaw: () => show("raw"),
    actions,
  };
}

function taken(root) {
  const inner = (name) =>
    [...root.querySelectorAll(`[data-${name}]`)]
      .sort((a, b) => Number(a.dataset[name]) - Number(b.dataset[name]))
      .map((one) => one.innerHTML);
  return { texts: inner("text"), messages: inner("message") };
}

function put(root, { texts = [], messages = [] }) {
  texts.forEach((html, place) => fill(root.querySelector(`[data-text="${place}"]`), html));
  messages.forEach((html, place) => fill(root.querySelector(`[data-message="${place}"]`), html));
}

function fill(place, html) {
  if (place) place.innerHTML = html; // written by the server's renderer
}
