// Reviewing by keyboard: 1-8, T and B vote, Ctrl+Enter keeps the verdict, then R shows the other side and N goes on.

import { Keys } from "../judge/keys.js";
import { openStrips } from "../judge/strip.js";
import { t } from "../judge/words.js";
import { toast } from "../toast.js";

const keys = new Keys({ chosen: {}, single: true, onSave: () => {} });
const form = document.getElementById("review-form");
const own = { keys: { reveal: "R", next: "N" }, labels: {}, actions: {} };

if (form) {
  const status = document.getElementById("status");
  const reason = document.getElementById("reason");
  const strips = openStrips(form, () => {
    status.textContent = "";
  });
  form.noValidate = true;
  form.addEventListener("submit", (event) => {
    const missing = !Object.keys(strips.value()).length ? "lead.need_verdict" : !reason.value.trim() ? "lead.need_reason" : "";
    if (!missing) return;
    event.preventDefault();
    status.textContent = t(missing);
    if (missing === "lead.need_reason") reason.focus();
  });
  own.actions = { ...strips.actions, submit: () => form.requestSubmit(), reveal: () => toast(t("lead.vote_first")) };
} else {
  const next = document.querySelector('[data-action="next"]');
  const reveal = document.querySelector('[data-action="reveal"]');
  own.keys.submit = "Ctrl+Enter";
  own.actions = {
    ...(next ? { next: () => next.matches("a") && location.assign(next.href), submit: () => location.assign(next.href) } : {}),
    ...(reveal ? { reveal: () => reveal.form.requestSubmit() } : {}),
  };
}
keys.use(own);

for (const list of document.querySelectorAll("form[data-auto] select")) {
  list.addEventListener("change", () => list.form.requestSubmit());
}
document.querySelector("#place h1")?.focus({ preventScroll: true });
