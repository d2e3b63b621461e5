// An answer that is improved or written: a text field, and what it changes in the original.

import { request } from "../request.js";
import { t } from "./words.js";

const DIFF_AFTER_MS = 500;

export function openEdit(root, { data, changed }) {
  const writing = openText(root, changed);
  const box = root.querySelector("#changes");
  const place = root.querySelector("#changes-texts");
  const button = root.querySelector('[data-action="diff"]');
  let timer = null;
  let asked = 0;
  writing.field.value = data.original;
  writing.field.addEventListener("input", later);

  function later() {
    if (box.hidden) return;
    clearTimeout(timer);
    timer = setTimeout(compare, DIFF_AFTER_MS);
  }

  async function compare() {
    if (writing.field.value === data.original) {
      place.replaceChildren(Object.assign(document.createElement("p"), { textContent: t("judge.changes_none") }));
      return;
    }
    asked += 1;
    const number = asked;
    let texts;
    try {
      ({ texts } = await request("POST", `${data.address}/diff`, { text: writing.field.value }));
    } catch {
      return; // the next change asks again
    }
    if (number !== asked) return;
    place.replaceChildren(
      ...texts.map((html, side) => {
        const part = document.createElement("section");
        part.className = "answer hostile-text";
        const title = document.createElement("h3");
        title.className = "eyebrow";
        title.textContent = t(side ? "judge.your_version" : "judge.original");
        const text = document.createElement("div");
        text.innerHTML = html; // written by the server's renderer
        part.append(title, text);
        return part;
      }),
    );
  }

  return {
    actions: {
      edit_focus: writing.focus,
      edit_reset() {
        writing.field.value = data.original;
        later();
        changed("");
      },
      diff() {
        box.hidden = !box.hidden;
        button.setAttribute("aria-pressed", String(!box.hidden));
        if (!box.hidden) {
          compare();
          box.scrollIntoView({ block: "nearest" });
        }
      },
    },
    value: () => (writing.field.value === data.original ? {} : { text: writing.field.value }),
    restore: writing.restore,
    problem() {
      if (!writing.field.value.trim()) return t("judge.need_text");
      return writing.field.value === data.original ? t("judge.need_edit") : "";
    },
    close: () => clearTimeout(timer),
  };
}

export function openDemonstration(root, { changed }) {
  const writing = openText(root, changed);
  return {
    actions: { edit_focus: writing.focus },
    value: () => (writing.field.value ? { text: writing.field.value } : {}),
    restore: writing.restore,
    problem: () => (writing.field.value.trim() ? "" : t("judge.need_text")),
  };
}

function openText(root, changed) {
  const field = root.querySelector("#writing");
  field.addEventListener("input", () => changed(""));
  return {
    field,
    focus: () => field.focus(),
    restore(value) {
      if (value.text !== undefined) field.value = value.text;
    },
  };
}
