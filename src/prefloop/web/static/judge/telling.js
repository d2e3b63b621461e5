// What the page says: a line that stays, a word in passing for screen readers, an error.

import { Refused } from "../request.js";
import { toast } from "../toast.js";
import { t } from "./words.js";

// A line that stays until it is no longer true.
export function notice(words, action = null) {
  const notices = document.getElementById("notices");
  notices.replaceChildren();
  if (!words) return;
  const box = document.createElement("div");
  box.className = "notice warn row";
  box.setAttribute("role", "status");
  const text = document.createElement("span");
  text.className = "grow";
  text.textContent = words;
  box.append(text);
  if (action) {
    const button = document.createElement(action.href ? "a" : "button");
    button.className = "button small";
    button.textContent = action.label;
    if (action.href) Object.assign(button, { href: action.href, target: "_blank", rel: "noopener" });
    else button.addEventListener("click", action.act);
    box.append(button);
  }
  notices.append(box);
}

// In the place of a task that there is none of.
export function instead(words) {
  const box = document.createElement("div");
  box.className = "empty";
  const text = document.createElement("p");
  text.textContent = words;
  const home = document.createElement("a");
  home.className = "button";
  home.href = "/";
  home.textContent = t("judge.to_home");
  box.append(text, home);
  document.getElementById("place").replaceChildren(box);
}

export function explain(error) {
  if (!(error instanceof Refused)) throw error;
  const words = { 0: t("base.offline"), 401: t("base.session_over"), 429: t("base.too_fast") }[error.status];
  toast(words ?? (error.message || t("base.failed")), { kind: "bad", seconds: 10 });
}

// Heard, not seen: what a key did.
export function say(words) {
  const heard = document.getElementById("said") ?? document.body.appendChild(
    Object.assign(document.createElement("p"), { id: "said", className: "visually-hidden" }),
  );
  heard.setAttribute("role", "status");
  heard.textContent = words;
}
