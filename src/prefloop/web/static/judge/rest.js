// Proposes a break after an hour of work; between two tasks, never within one.

import { t } from "./words.js";

const KEPT = "prefloop.worked";
const A_BREAK_MS = 5 * 60_000;
const LATER_MS = 10 * 60_000;
const MINUTE_MS = 60_000;

export class Rest {
  constructor(minutes) {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    this.after = minutes * MINUTE_MS;
    this.worked = 0;
    this.lastWork = Date.now();
    this.due = this.after;
    if (kept && Date.now() - kept.lastWork < A_BREAK_MS) Object.assign(this, kept);
  }

  // `ms` of work since the last time
  add(ms) {
    if (ms <= 0) return;
    const now = Date.now();
    if (now - this.lastWork >= A_BREAK_MS) this.restart();
    this.worked += ms;
    this.lastWork = now;
  }

  restart() {
    this.worked = 0;
    this.due = this.after;
  }

  keep() {
    sessionStorage.setItem(KEPT, JSON.stringify({ worked: this.worked, lastWork: this.lastWork, due: this.due }));
  }

  // Resolves once the reader has chosen; true where they take a break.
  async propose() {
    this.keep();
    if (this.worked < this.due) return false;
    const dialog = document.getElementById("break-dialog");
    document.getElementById("break-text").textContent = t("judge.break_text", {
      minutes: Math.round(this.worked / MINUTE_MS),
    });
    dialog.returnValue = "later";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    const takes = dialog.returnValue === "now";
    if (takes) this.restart();
    else this.due = this.worked + LATER_MS;
    this.keep();
    return takes;
  }
}
