// Two next steps: which is better, and which of them are right.

import { openStrips } from "./strip.js";
import { t } from "./words.js";

const LABELS = ["correct", "incorrect", "unsure"];

export function openSteps(root, { changed }) {
  const strips = openStrips(root, changed);
  const sides = [...root.querySelectorAll("[data-label-of]")];
  const labelOf = (side) => side.querySelector("input:checked")?.value ?? null;

  // the step that has the focus, or the first without a label, or the first
  function here() {
    const focused = document.activeElement?.closest?.(".stack")?.querySelector("[data-label-of]");
    return focused ?? sides.find((side) => labelOf(side) === null) ?? sides[0];
  }

  function label(name) {
    const side = here();
    const radio = side.querySelector(`input[value="${name}"]`);
    radio.checked = true;
    point();
    changed(`${side.querySelector("legend").textContent} ${t(`judge.${name}`)}`);
  }

  // the keys stand beside the step that they are about
  const point = () => {
    const side = here();
    for (const one of sides) one.classList.toggle("current", one === side);
  };
  root.addEventListener("focusin", point);
  root.addEventListener("change", point);
  point();

  return {
    actions: { ...strips.actions, ...Object.fromEntries(LABELS.map((name) => [name, () => label(name)])) },
    value() {
      const labels = sides.map(labelOf);
      return { ...strips.value(), ...(labels.some((one) => one !== null) ? { labels } : {}) };
    },
    restore(value) {
      strips.restore(value);
      (value.labels ?? []).forEach((name, place) => {
        const radio = sides[place]?.querySelector(`input[value="${name}"]`);
        if (radio) radio.checked = true;
      });
    },
    problem() {
      const value = this.value();
      if (value.labels?.includes(null)) return t("judge.need_labels");
      return Object.keys(value).length ? "" : t("judge.need_answer");
    },
  };
}
